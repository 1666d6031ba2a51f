"""Drawing many pictures from captions, each from noise of its own, with the time it takes."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from PIL import Image
from tqdm import tqdm

from ssd1b.batching import batches
from ssd1b.pipeline import Pipeline

Task: TypeAlias = tuple[str, int]
"""A caption and a seed."""


def draw_captions(
    pipeline: Pipeline, tasks: Sequence[Task], *, batch_size: int, label: str = "draw", **settings: Any
) -> Iterator[tuple[Image.Image, float]]:
    """Draw in batches: each picture with its share of the seconds that its batch took, in the tasks' order.

    Args:
        pipeline: the model.
        tasks: what to draw; a picture does not depend on the others of its batch.
        batch_size: pictures drawn at a time, fewer where drawing them at once would change them.
        label: what the progress bar is called.
        **settings: any field of ``GenerationSettings`` but prompt and seed.
    """
    chosen = [pipeline.settings(caption, seed=seed, **settings) for caption, seed in tasks]
    found: dict[int, tuple[Image.Image, float]] = {}
    following = 0
    with tqdm(total=len(tasks), desc=label, unit="picture", disable=None, leave=False) as bar:
        for places in batches(
            range(len(chosen)),
            key=lambda place: pipeline.batch_key(chosen[place]),
            limit=lambda place: pipeline.batch_limit(chosen[place], batch_size),
        ):
            clock = time.perf_counter()
            pictures = pipeline.draw([chosen[place] for place in places])
            seconds = (time.perf_counter() - clock) / len(places)
            found |= {place: (each.image, seconds) for place, each in zip(places, pictures, strict=True)}
            while following in found:
                yield found.pop(following)
                following += 1
            bar.update(len(places))
