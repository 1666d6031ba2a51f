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
from ssd1b.evaluate.drawing import Task, draw
from ssd1b.evaluate.statistics import Estimate, estimate
from ssd1b.tabletop.captions import full_caption
from ssd1b.tabletop.degradations import DEGRADATIONS
from ssd1b.tabletop.evaluation import BATCH_SIZE, Case, cases, score
from ssd1b.tabletop.judge import Judge, Reading, load_judge

AXES: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0),
    "steps": (4, 6, 8, 12, 20, 35),
    "negative_prompt": (None, "", ", ".join(DEGRADATIONS)),
    "sampler": ("unipc", "euler", "ddpm", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "heun"),
}
SHOWN = ("right", "shape", "color", "background", "clean")


def read(pipeline: Pipeline, judge: Judge, tasks: list[Task], **settings: Any) -> list[Reading]:
    """Draw, and let the judge read."""
    drawn = draw(pipeline, tasks, batch_size=BATCH_SIZE, **settings)
    return judge.read(np.stack([np.asarray(image) for image, _ in drawn]))


def measured(pipeline: Pipeline, judge: Judge, chosen: list[Case], **settings: Any) -> dict[str, Estimate]:
    """Each score of the pictures, with its interval."""
    seen = read(pipeline, judge, [(case.caption, case.seed) for case in chosen], **settings)
    scores = [score(case.scene, each).values for case, each in zip(chosen, seen, strict=True)]
    return {name: estimate([each[name] for each in scores]) for name in scores[0]}


def spoiled(pipeline: Pipeline, judge: Judge, prompts: list[str], word: str, **settings: Any) -> Estimate:
    """Share of the prompts' pictures that the judge finds spoiled in the way of ``word``."""
    seen = read(pipeline, judge, [(prompt, seed) for seed, prompt in enumerate(prompts)], **settings)
    return estimate([each.degradation == word for each in seen])


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


def named(value: Any) -> str:
    """A setting's value as ticks show it."""
    names = {None: "none", "": "empty", ", ".join(DEGRADATIONS): "all nine words"}
    return names.get(value, str(value))


def plot(measured: dict[str, dict[str, dict[str, Estimate]]]) -> Figure:
    figure = Figure(figsize=(15, 13), layout="constrained")
    panels = figure.subplots(3, 2).flat
    for (axis, points), axes in zip(measured.items(), panels, strict=False):
        places = range(len(points))
        for name in points[next(iter(points))]:
            if axis != "words" and name not in SHOWN:
                continue
            each = [point[name] for point in points.values()]
            gaps = [[e.mean - e.low for e in each], [e.high - e.mean for e in each]]
            axes.errorbar(places, [e.mean for e in each], gaps, marker="o", capsize=2, label=name)
        axes.set_xticks(places, list(points), rotation=30)
        axes.set(title=axis, ylim=(-0.02, 1.02), ylabel="share of pictures")
        axes.legend(fontsize=8)
    for axes in panels:
        axes.axis("off")
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
        axis: {named(value): measured(pipeline, judge, chosen, **{axis: value}) for value in values}
        for axis, values in AXES.items()
    }
    prompts = [
        full_caption(replace(case.scene, degradation=None)) for case in chosen[: options.captions // 2]
    ]
    result["words"] = words(pipeline, judge, prompts)
    facts = {
        axis: {point: {n: e._asdict() for n, e in row.items()} for point, row in points.items()}
        for axis, points in result.items()
    }
    (options.out / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")
    plot(result).savefig(options.out / "settings.png", dpi=70)


if __name__ == "__main__":
    main()
