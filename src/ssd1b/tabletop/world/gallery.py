"""A sheet that shows renders next to a model's images of the same captions."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ssd1b.evaluate.reconstruction import reconstruct
from ssd1b.evaluate.sheets import picture_table
from ssd1b.pipeline import Pipeline
from ssd1b.progress import progress_bar
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import Scene

SEEDS = 4


def side_by_side(pipeline: Pipeline, scenes: Sequence[Scene], **settings: Any) -> Image.Image:
    """Show for each scene its render, the reconstruction, and images generated from its caption."""
    rows: list[list[Image.Image]] = []
    captions = [full_caption(scene) for scene in scenes]
    for scene, caption in zip(progress_bar(scenes, unit="row"), captions, strict=True):
        picture = render(scene)
        (kept,) = reconstruct(pipeline.vae, picture[None])
        drawn = pipeline.generate(caption, seed=0, count=SEEDS, **settings)
        rows.append([Image.fromarray(picture), Image.fromarray(kept), *(each.image for each in drawn)])
    return picture_table(
        rows, ["render", "autoencoder", *(f"drawn, seed {seed}" for seed in range(SEEDS))], captions
    )
