"""Compare distillation losses and choices of kept blocks: arms of equal length, evaluated in the same way.

    python benchmarks/ablation.py --steps 400 --seeds 2 --captions 200 --out runs/ablation

Each arm distils the miniature SDXL to SSD-1B's topology. All arms see the same images in the same order; the
seed decides the noise. The same command resumes an interrupted run. Writes OUT/ablation.json and
OUT/ablation.png.
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

from ssd1b import Loading, evaluate_tabletop
from ssd1b.distill.losses import Weights
from ssd1b.distill.plan import plan
from ssd1b.distill.run import join_processes, measure_importance, run, write_model
from ssd1b.distill.stages import Stage, read_stages, with_total_steps
from ssd1b.distill.teacher import find_teacher
from ssd1b.distill.train import student_of
from ssd1b.evaluate.statistics import Estimate, difference, estimate
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.models.vae import VAE
from ssd1b.saving import replacing
from ssd1b.tabletop.judge.evaluation import Evaluation
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
"""Stages of each arm; all but the last two keep blocks 0, 1, 2 and 6 of ten."""

SHOWN = ("right", "shape", "color", "material", "relation")


def with_settings(stages: list[Stage], settings: LoopSettings) -> list[Stage]:
    """Divide the settings' steps between stages, each with its own decay."""
    return with_total_steps([replace(stage, train=settings) for stage in stages], settings.steps)


def training_data(cache: Path, vae: VAE, text: TextEncoders, settings: LoopSettings) -> CaptionedLatents:
    return captioned_latents(vae, text, cache, replace(settings, seed=DATA_SEED))


def make_student(out: Path, teacher: Model, stages: list[Stage], cache: Path, *, untrained: bool) -> Path:
    """Make a student and return its folder."""
    data = partial(training_data, cache)
    measure = partial(measure_importance, teacher, data, "cpu", source=DATA, out=cache)
    planned = plan(teacher.layout.unet, stages, measure)
    if untrained:
        return write_model(out, student_of(teacher.network("unet"), planned[-1].layers), teacher).folder
    group = join_processes("cpu", [each.stage.train for each in planned])
    return run(out, planned, {None: teacher}, data, group, resume=True).folder


def evaluate_model(model: str, captions: int) -> Evaluation:
    return evaluate_tabletop([model], Loading(offline=True), captions=captions).evaluations[0]


def cached(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure, or read an earlier measurement."""
    if not path.exists():
        with replacing(path) as aside:
            write_json(aside, measure())
    return json.loads(path.read_text())


def values(evaluation: Evaluation) -> dict[str, Any]:
    rows = {name: [None if np.isnan(v) else v for v in each] for name, each in evaluation.values.items()}
    return {"values": rows, "frechet": evaluation.frechet}


def over_seeds(found: list[dict[str, Any]], name: str) -> np.ndarray:
    """Average each case's value over training seeds."""
    return np.array([each["values"][name] for each in found], dtype=float).mean(axis=0)


def summary(found: dict[str, list[dict[str, Any]]], teacher: dict[str, Any]) -> dict[str, Any]:
    """Give each metric of each arm with its interval over captions, for each seed, and behind the teacher."""
    arms: dict[str, Any] = {}
    for arm, runs in found.items():
        arms[arm] = {
            name: {
                **estimate(over_seeds(runs, name))._asdict(),
                "seeds": [float(np.nanmean(over_seeds([each], name))) for each in runs],
                "behind": difference(over_seeds([teacher], name), over_seeds(runs, name))._asdict(),
            }
            for name in teacher["values"]
        }
        arms[arm]["frechet"] = {"seeds": [each["frechet"] for each in runs]}
    return arms


def plot(arms: dict[str, Any], teacher: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(SHOWN):
        each = [Estimate(**{k: arm[name][k] for k in Estimate._fields}) for arm in arms.values()]
        positions = np.arange(len(arms)) + 0.15 * (row - len(SHOWN) / 2)
        gaps = [[e.mean - e.low for e in each], [e.high - e.mean for e in each]]
        points = axes.errorbar(positions, [e.mean for e in each], gaps, fmt="o", capsize=2, label=name)
        mean = float(np.nanmean(over_seeds([teacher], name)))
        axes.axhline(mean, color=points.lines[0].get_color(), linewidth=0.7, linestyle=":")
    axes.set_xticks(range(len(arms)), list(arms), rotation=20)
    axes.set(ylim=(0, 1), ylabel="share of images", title="dotted: the teacher")
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
    teacher_model = find_teacher(TEACHER, offline=True)
    teacher = cached(options.out / "teacher.json", lambda: values(evaluate_model(TEACHER, options.captions)))
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for arm in options.arms:
            untrained = arm == UNTRAINED
            if untrained and seed:
                continue
            folder = options.out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
            stages = with_settings(ARMS[arm], replace(settings, seed=seed))
            student = make_student(folder, teacher_model, stages, options.out, untrained=untrained)
            measure = partial(lambda path: values(evaluate_model(str(path), options.captions)), student)
            found.setdefault(arm, []).append(cached(folder / "judged.json", measure))
            arms = summary(found, teacher)
            with replacing(options.out / "ablation.json") as aside:
                write_json(aside, {"steps": options.steps, "batch_size": options.batch_size, "arms": arms})
            plot(arms, teacher).savefig(options.out / "ablation.png", dpi=70)


if __name__ == "__main__":
    main()
