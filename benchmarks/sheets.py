"""Make the sheets of README and guide: guidance, negative prompts, renders and generated images.

    python benchmarks/sheets.py --model mini-sdxl --out docs/pictures

Prompts are the first captions of their world; nothing is selected by hand. The guidance sheet uses held-out
combinations of shape, colour and material.
"""

import argparse
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ssd1b import Pipeline
from ssd1b.evaluate.sheets import contact_sheet, picture_table
from ssd1b.tabletop.judge.judge import Judge, load_judge
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.gallery import side_by_side
from ssd1b.tabletop.world.renderer import render_batch
from ssd1b.tabletop.world.scenes import WORLDS, Scene, Split, scene

GUIDANCE = (1.0, 2.0, 4.0, 7.0, 12.0, 20.0)
FAULTS, TRIES = 5, 240
"""Number of kinds of spoiled images on the sheet, and of images to search for them."""


def clean(number: int, *, seed: int = 7, split: Split) -> list[Scene]:
    """Give the first clean scenes of a stream."""
    scenes = (scene(seed, index, split=split) for index in count())
    return list(islice((each for each in scenes if each.degradation is None), number))


def guidance_sheet(pipeline: Pipeline) -> Image.Image:
    prompts = [full_caption(each) for each in clean(6, split="held_out")]
    rows = [
        [pipeline.generate(prompt, seed=1, guidance_scale=scale)[0].image for scale in GUIDANCE]
        for prompt in prompts
    ]
    return picture_table(rows, [f"guidance {scale:g}" for scale in GUIDANCE], prompts)


def negative_sheet(pipeline: Pipeline, judge: Judge) -> Image.Image:
    """Show the first spoiled image of each kind, and the same with the fault as negative prompt."""
    prompts = [full_caption(each) for each in clean(TRIES, split="train")]
    rows, headings, found = [], [], set()
    for seed, prompt in enumerate(tqdm(prompts, desc="find spoiled images", disable=None)):
        (plain,) = pipeline.generate(prompt, seed=seed)
        fault = judge.read(np.asarray(plain.image)[None])[0].degradation
        if fault is None or fault in found:
            continue
        (corrected,) = pipeline.generate(prompt, seed=seed, negative_prompt=fault)
        rows.append([plain.image, corrected.image])
        headings.append(f"{prompt} (seed {seed}): {fault}")
        found.add(fault)
        if len(found) == FAULTS:
            break
    return picture_table(rows, ["no negative prompt", "fault as negative prompt"], headings, margin=230)


def world_sheet(world: str, seed: int) -> Image.Image:
    scenes = [scene(seed, index, world=WORLDS[world]) for index in range(15)]
    return contact_sheet(list(render_batch(scenes)), [full_caption(each) for each in scenes])


def drawn_sheet(pipeline: Pipeline) -> Image.Image:
    splits: tuple[Split, ...] = ("train", "held_out")
    return side_by_side(pipeline, [each for split in splits for each in clean(5, seed=5, split=split)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-sdxl")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.load(options.model)
    sheets = {
        "guidance": guidance_sheet(pipeline),
        "negative": negative_sheet(pipeline, load_judge()),
        "tabletop": world_sheet("plain", 3),
        "tabletop-rich": world_sheet("rich", 5),
        "tabletop-drawn": drawn_sheet(pipeline),
    }
    for name, sheet in sheets.items():
        sheet.save(options.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
