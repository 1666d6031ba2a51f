"""Measure what settings do to the miniature's pictures: guidance, steps, samplers, and negative prompts.

    python benchmarks/settings.py --captions 60 --out docs/log

Every setting draws the same captions from the same noise, and the judge counts what is right. The words of
the negative prompts are measured on prompts that ask for the defect, with and without naming it negatively.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssd1b import Pipeline
from ssd1b.evaluate.drawing import draw
from ssd1b.evaluate.statistics import Estimate, estimate
from ssd1b.tabletop.captions import full_caption
from ssd1b.tabletop.degradations import DEGRADATIONS
from ssd1b.tabletop.evaluation import BATCH_SIZE, Case, cases, score
from ssd1b.tabletop.judge import Judge, load_judge

AXES: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0),
    "steps": (4, 6, 8, 12, 20, 35),
    "sampler": ("unipc", "euler", "ddpm", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "heun"),
}
SHOWN = ("right", "shape", "color", "background", "clean")


def measured(pipeline: Pipeline, judge: Judge, chosen: list[Case], **settings: Any) -> dict[str, Estimate]:
    """Each score of the pictures, with its interval."""
    tasks = [(case.caption, case.seed) for case in chosen]
    drawn = draw(pipeline, tasks, batch_size=BATCH_SIZE, **settings)
    pictures = np.stack([np.asarray(image) for image, _ in drawn])
    scores = [score(case.scene, seen).values for case, seen in zip(chosen, judge.read(pictures), strict=True)]
    return {name: estimate([each[name] for each in scores]) for name in scores[0]}


def spoiled(pipeline: Pipeline, judge: Judge, prompts: list[str], word: str, **settings: Any) -> Estimate:
    """Share of a prompt's pictures that the judge finds spoiled in the way of ``word``."""
    found = []
    for seed, prompt in enumerate(prompts):
        (picture,) = pipeline.generate(prompt, seed=seed, **settings)
        found.append(judge.read(np.asarray(picture.image)[None])[0].degradation == word)
    return estimate(found)


def words(pipeline: Pipeline, judge: Judge, prompts: list[str]) -> dict[str, dict[str, Estimate]]:
    """Of each degradation: asked for, asked for and named by the negative prompt."""
    result = {}
    for word in DEGRADATIONS:
        asking = [f"{prompt}, {word}" for prompt in prompts]
        result[word] = {
            "silent": spoiled(pipeline, judge, prompts, word),
            "asked for": spoiled(pipeline, judge, asking, word),
            "asked for, and negative": spoiled(pipeline, judge, asking, word, negative_prompt=word),
        }
    return result


def plot(measured: dict[str, dict[str, dict[str, Estimate]]]) -> Figure:
    figure = Figure(figsize=(15, 9), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, (axis, points) in zip(panels, measured.items(), strict=False):
        places = range(len(points))
        for name in points[next(iter(points))]:
            if axis != "negative" and name not in SHOWN:
                continue
            each = [point[name] for point in points.values()]
            gaps = [[e.mean - e.low for e in each], [e.high - e.mean for e in each]]
            axes.errorbar(places, [e.mean for e in each], gaps, marker="o", capsize=2, label=name)
        axes.set_xticks(places, list(points), rotation=30)
        axes.set(title=axis, ylim=(-0.02, 1.02), ylabel="share of pictures")
        axes.legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-sdxl")
    parser.add_argument("--captions", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("docs/log"))
    options = parser.parse_args()
    pipeline, judge = Pipeline.load(options.model), load_judge()
    chosen = cases(options.captions)
    result = {
        axis: {str(value): measured(pipeline, judge, chosen, **{axis: value}) for value in values}
        for axis, values in AXES.items()
    }
    prompts = [
        full_caption(replace(case.scene, degradation=None)) for case in chosen[: options.captions // 2]
    ]
    result["negative"] = words(pipeline, judge, prompts)
    facts = {
        axis: {point: {n: e._asdict() for n, e in row.items()} for point, row in points.items()}
        for axis, points in result.items()
    }
    (options.out / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")
    plot(result).savefig(options.out / "settings.png", dpi=70)


if __name__ == "__main__":
    main()
