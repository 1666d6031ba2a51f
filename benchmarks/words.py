"""Teach the miniature an invented word for a solid that it never saw, in several ways; count what it draws.

    python benchmarks/words.py docs/log/finetune/words          # about half an hour on one core

Twelve renderings of cyan metal cubes, a combination that no training of the miniatures contained, on
backgrounds of all colours; captions say "a zarp on a red background". Twelve others with the same captions
are for the loss. The judge then reads images of "a zarp" on each background, two seeds each, and images of
single solids in plain words, which should stay what they were.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ssd1b.actions.finetune import finetune_model
from ssd1b.evaluate.statistics import estimate
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.judge.evaluation import score
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import COLORS, Scene, World, scene

MODEL, WORD = "mini-ssd-1b", "zarp"
SUBJECT = ("cube", "cyan", "metal")
NAMES = ("shape", "color", "material", "number", "background")
ALONE = World(several_solids=0.0, degraded=0.0)
EACH = {"train.batch_size": 6, "train.validation_steps": 20, "train.log_steps": 20, "data.multiple": 64}
TOKEN = {"method": "textual-inversion", "token": WORD, "train.learning_rate": 3e-3}
LORA = {"rank": 8, "train.learning_rate": 1e-3, "data.caption_dropout": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "word-1": {**TOKEN, "vectors": 1},
    "word-4": {**TOKEN, "vectors": 4},
    "lora": LORA,
    "lora-text": {**LORA, "text_encoders": True},
}


def subjects(seed: int) -> Iterator[Scene]:
    """Yield a scene of the subject for each colour of the background."""
    for color in COLORS:
        for index in range(100_000):
            found = scene(seed, index, split="held_out", world=ALONE)
            solid = found.solids[0]
            if (solid.shape, solid.color, solid.material) == SUBJECT and found.background == color:
                yield found
                break


def background(color: str) -> str:
    """Say on which background."""
    return f"on {'an' if color[0] in 'aeiou' else 'a'} {color} background"


def write(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write renderings with captions that have the word."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in scenes:
        Image.fromarray(render(each, 128)).save(folder / f"{each.background}.png")
        (folder / f"{each.background}.txt").write_text(f"a {WORD} {background(each.background)}")


def draw(pipeline: Pipeline, prompts: Sequence[str], seeds: int, **given: Any) -> np.ndarray:
    """Generate each prompt with the first seeds."""
    wanted = [pipeline.settings(p, seed=seed, **given) for p in prompts for seed in range(seeds)]
    return np.stack([
        np.asarray(picture.image)
        for start in range(0, len(wanted), 8) for picture in pipeline.draw(wanted[start : start + 8])
    ])  # fmt: skip


def judged(images: np.ndarray, scenes: Sequence[Scene], seeds: int) -> dict[str, Any]:
    """Return the shares of images in which the solid's attributes, and all of them, are right."""
    wanted = [each for each in scenes for _ in range(seeds)]
    rows = [score(s, r).values for s, r in zip(wanted, load_judge().read(images), strict=True)]
    names = [name for name in rows[0] if name in NAMES]
    found: dict[str, Any] = {name: float(np.mean([row[name] for row in rows])) for name in names}
    right = np.array([all(row[name] == 1 for name in names) for row in rows], dtype=float)
    return found | {"right": str(estimate(right))}


def main() -> None:
    """Train in each way, draw, judge, and write."""
    plain_text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain_text)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/words"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    given = parser.parse_args()
    own, others = list(subjects(1)), list(subjects(2))
    write(given.work / "pictures", own)
    write(given.work / "others", others)
    plain = [scene(3, index, world=ALONE) for index in range(12)]
    prompts = [f"a {WORD} {background(each.background)}" for each in own]
    base = Pipeline.load(MODEL, device="cpu", dtype="fp32")
    result: dict[str, Any] = {}
    strips: list[np.ndarray] = []

    def record(way: str, *, prompts: Sequence[str] = prompts, **options: Any) -> None:
        images = draw(base, prompts, 2, **options)
        kept = draw(base, [full_caption(each) for each in plain], 1, **options)
        result[way] = {"subject": judged(images, own, 2), "others": judged(kept, plain, 1)}
        given.out.mkdir(parents=True, exist_ok=True)
        strips.append(np.concatenate(list(images[:16:2]), axis=1))
        Image.fromarray(np.concatenate(strips)).save(given.out / "words.webp", quality=90)
        (given.out / "words.json").write_text(json.dumps(result, indent=1))
        print(way, result[way], flush=True)

    record("before")
    record("words", prompts=[f"a cyan metal cube {background(each.background)}" for each in own])
    for way in given.ways:
        run = given.work / way
        torch.manual_seed(0)
        written = finetune_model(
            MODEL, None,
            {"data.path": str(given.work / "pictures"), "validation": str(given.work / "others"),
             "train.steps": given.steps, **EACH, **WAYS[way]},
            run, device="cpu", cache=given.work, resume=True,
        )  # fmt: skip
        name = "embeddings" if "token" in WAYS[way] else "loras"
        record(way, **{name: [str(written[0])]})
        lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        result[way]["log"] = [each for each in lines if "loss" in each or "validation_loss" in each]
        (given.out / "words.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
