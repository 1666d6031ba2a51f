"""Compare what a student is taught by, and which blocks it keeps: arms of the same length, judged alike.

    python benchmarks/ablation.py --steps 400 --seeds 2 --captions 200 --out runs/ablation

The miniature SDXL is distilled to SSD-1B's topology in each arm. All arms see the same pictures in the same
order; a seed decides the noise. A run that was stopped goes on with the same command. Figures and plot are in
OUT/ablation.json and OUT/ablation.png.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssd1b import Pipeline
from ssd1b.distill.losses import Weights
from ssd1b.distill.plan import plan
from ssd1b.distill.run import measured_importance, run, write_model
from ssd1b.distill.stages import Stage, read_stages, retimed
from ssd1b.distill.teacher import find_teacher
from ssd1b.distill.train import student_of
from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.statistics import Estimate, difference, estimate
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.models.vae import VAE
from ssd1b.saving import replacing
from ssd1b.tabletop.judge.evaluation import Evaluation, evaluate
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.miniature.train_unet import CaptionedLatents, captioned_latents
from ssd1b.training.settings import LoopSettings
from ssd1b.weights.files import write_json

TEACHER = "mini-sdxl"
DATA = "tabletop"
DATA_SEED = 5
UNTRAINED = "cut, not trained"

SINGLE = Stage(student="mini-ssd-1b")
TASK = Weights(output=0.0, features=0.0)
OUTPUT = Weights(features=0.0)

ARMS: dict[str, list[Stage]] = {
    UNTRAINED: [SINGLE],
    "task": [replace(SINGLE, features="none", weights=TASK)],
    "output": [replace(SINGLE, features="none", weights=OUTPUT)],
    "block features": [replace(SINGLE, features="block")],
    "layer features": [SINGLE],
    "layer features, normalised": [replace(SINGLE, weights=Weights(normalised=True))],
    "layer features, in stages": read_stages("ssd-1b"),
    "keep the first": [replace(SINGLE, keep="first")],
    "keep by importance": [replace(SINGLE, keep="importance")],
}
"""What is taught; but for the last two, of ten blocks 0, 1, 2 and 6 are kept."""

SHOWN = ("right", "shape", "color", "material", "relation")


def trained(settings: LoopSettings, stages: list[Stage]) -> list[Stage]:
    """Stages that share out the settings' steps, each with a decay of its own."""
    each = [replace(stage, train=settings) for stage in stages]
    return retimed(each, settings.steps)


def pictures(cache: Path, vae: VAE, text: TextEncoders, settings: LoopSettings) -> CaptionedLatents:
    return captioned_latents(vae, text, cache, replace(settings, seed=DATA_SEED))


def made(out: Path, teacher: Model, stages: list[Stage], cache: Path, *, untrained: bool) -> Path:
    """The student's folder."""
    data = partial(pictures, cache)
    measure = partial(measured_importance, teacher, data, "cpu", source=DATA, out=cache)
    planned = plan(teacher.layout.unet, stages, measure)
    if untrained:
        return write_model(out, student_of(teacher.network("unet"), planned[-1].layers), teacher).folder
    return run(out, planned, {None: teacher}, data, resume=True).folder


def judged(model: str, captions: int) -> Evaluation:
    pipeline = Pipeline.load(model)
    folder = Model.find(model, offline=True).path
    return evaluate(pipeline, load_judge(), ClipScore.load(folder, pipeline.text), captions=captions, seeds=1)


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure, or read what was measured before."""
    if not path.exists():
        with replacing(path) as aside:
            write_json(aside, measure())
    return json.loads(path.read_text())


def values(evaluation: Evaluation) -> dict[str, Any]:
    rows = {name: [None if np.isnan(v) else v for v in each] for name, each in evaluation.values.items()}
    return {"values": rows, "frechet": evaluation.frechet}


def over_seeds(found: list[dict[str, Any]], name: str) -> np.ndarray:
    """Mean over training seeds of each case's value."""
    return np.array([each["values"][name] for each in found], dtype=float).mean(axis=0)


def summary(found: dict[str, list[dict[str, Any]]], teacher: dict[str, Any]) -> dict[str, Any]:
    """Of each arm every figure with its interval over captions, each seed's, and how far behind it is."""
    told: dict[str, Any] = {}
    for arm, runs in found.items():
        told[arm] = {
            name: {
                **estimate(over_seeds(runs, name))._asdict(),
                "seeds": [float(np.nanmean(over_seeds([each], name))) for each in runs],
                "behind": difference(over_seeds([teacher], name), over_seeds(runs, name))._asdict(),
            }
            for name in teacher["values"]
        }
        told[arm]["frechet"] = {"seeds": [each["frechet"] for each in runs]}
    return told


def plot(told: dict[str, Any], teacher: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(SHOWN):
        each = [Estimate(**{k: arm[name][k] for k in Estimate._fields}) for arm in told.values()]
        places = np.arange(len(told)) + 0.15 * (row - len(SHOWN) / 2)
        gaps = [[e.mean - e.low for e in each], [e.high - e.mean for e in each]]
        drawn = axes.errorbar(places, [e.mean for e in each], gaps, fmt="o", capsize=2, label=name)
        mean = float(np.nanmean(over_seeds([teacher], name)))
        axes.axhline(mean, color=drawn.lines[0].get_color(), linewidth=0.7, linestyle=":")
    axes.set_xticks(range(len(told)), list(told), rotation=20)
    axes.set(ylim=(0, 1), ylabel="share of pictures", title="dotted: the teacher")
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    settings = LoopSettings(
        steps=options.steps, batch_size=options.batch_size, learning_rate=4e-4, muon_rate=0.008,
        muon_decay=0.1, warmup_share=1 / 40, decay_steps=options.steps, decay_share=1.0, ema_decay=0.99,
        checkpoint_steps=100,
    )  # fmt: skip
    found_teacher = find_teacher(TEACHER, offline=True)
    teacher = once(options.out / "teacher.json", lambda: values(judged(TEACHER, options.captions)))
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for arm in options.arms:
            untrained = arm == UNTRAINED
            if untrained and seed:
                continue
            folder = options.out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
            stages = trained(replace(settings, seed=seed), ARMS[arm])
            student = made(folder, found_teacher, stages, options.out, untrained=untrained)
            measure = partial(lambda path: values(judged(str(path), options.captions)), student)
            found.setdefault(arm, []).append(once(folder / "judged.json", measure))
            told = summary(found, teacher)
            with replacing(options.out / "ablation.json") as aside:
                write_json(aside, {"steps": options.steps, "batch_size": options.batch_size, "arms": told})
            plot(told, teacher).savefig(options.out / "ablation.png", dpi=70)


if __name__ == "__main__":
    main()
