"""Draw the sheets that the README shows: guidance at work, and negative prompts.

    python benchmarks/sheets.py --model mini-sdxl --out docs/pictures

Prompts are the first captions of the held-out world, with combinations of shape, colour and material that the
training never showed; nothing is chosen by hand.
"""

import argparse
from itertools import count, islice
from pathlib import Path

from PIL import Image

from ssd1b import Pipeline
from ssd1b.tabletop.captions import full_caption
from ssd1b.tabletop.scenes import Scene, scene
from ssd1b.tabletop.sheet import table

GUIDANCE = (1.0, 2.0, 4.0, 7.0, 12.0, 20.0)
NEGATIVES = ("blurry", "low quality", "noisy", "monochrome", "jpeg artifacts")
WORLD_SEED = 7


def held_out(number: int, degradation: str | None = None) -> list[Scene]:
    """The first scenes of the held-out world with this degradation (None: without any)."""
    scenes = (scene(WORLD_SEED, index, split="held_out") for index in count())
    return list(islice((s for s in scenes if s.degradation == degradation), number))


def guidance_sheet(pipeline: Pipeline) -> Image.Image:
    prompts = [full_caption(s) for s in held_out(6)]
    rows = [
        [pipeline.generate(prompt, seed=1, guidance_scale=scale)[0].image for scale in GUIDANCE]
        for prompt in prompts
    ]
    return table(rows, [f"guidance {scale:g}" for scale in GUIDANCE], prompts)


def negative_sheet(pipeline: Pipeline) -> Image.Image:
    """Prompts that leave the quality open; the negative prompt names what spoils a fifth of the world."""
    prompts = [full_caption(s) for s in held_out(4)]
    without = [[p.image for p in pipeline.generate(prompt, seed=1, count=3)] for prompt in prompts]
    named = ", ".join(NEGATIVES)
    with_it = [
        [p.image for p in pipeline.generate(prompt, seed=1, count=3, negative_prompt=named)]
        for prompt in prompts
    ]
    rows = [a + b for a, b in zip(without, with_it, strict=True)]
    top = [f"seed {seed}" for seed in (1, 2, 3)] + [f"seed {seed}, negative" for seed in (1, 2, 3)]
    return table(rows, top, prompts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-sdxl")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.load(options.model)
    guidance_sheet(pipeline).save(options.out / "guidance.png", optimize=True)
    negative_sheet(pipeline).save(options.out / "negative.png", optimize=True)


if __name__ == "__main__":
    main()
