"""Count what is right in a few-step student's images beside its teacher's, on Tabletop, with equal captions.

    python benchmarks/few_steps.py STUDENT RESULT.json [--captions 240] [--teacher mini-ssd-1b]
        [--known EARLIER.json]

STUDENT is a model of ``ssd1b distill --steps-method``. Both draw the same captions from the same noise. Of
EARLIER, a result with the same captions and teacher, the teacher's scores are taken, and its images not drawn
again. RESULT has each image's scores, and for each run the mean and its difference from the teacher at 20
steps with guidance, paired by caption, with 95% intervals.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ssd1b.evaluate.drawing import timed
from ssd1b.evaluate.statistics import difference, estimate
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.judge.evaluation import BATCH_SIZE, Case, cases, score
from ssd1b.tabletop.judge.judge import Judge, load_judge

STEPS = (1, 2, 4, 8)
REFERENCE = "teacher, 20 steps, UniPC, guidance 4"
SCORES = ("right", "flawless", "clean")


def runs(teacher: str, student: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each run's model and settings by its label; the reference first."""
    found: dict[str, tuple[str, dict[str, Any]]] = {
        REFERENCE: (teacher, {"steps": 20, "sampler": "unipc", "guidance_scale": 4.0})
    }
    for steps in STEPS:
        found[f"student, {steps} steps"] = (student, {"steps": steps})
    for steps in STEPS[1:]:
        found[f"teacher, {steps} steps, UniPC, guidance 4"] = (
            teacher, {"steps": steps, "sampler": "unipc", "guidance_scale": 4.0},
        )  # fmt: skip
        found[f"teacher, {steps} steps, DDIM trailing, guidance 4"] = (
            teacher, {"steps": steps, "sampler": "ddim", "schedule": "trailing", "guidance_scale": 4.0},
        )  # fmt: skip
    found["teacher, 8 steps, UniPC, no guidance"] = (
        teacher, {"steps": 8, "sampler": "unipc", "guidance_scale": 1.0}
    )  # fmt: skip
    return found


def measure(pipeline: Pipeline, judge: Judge, chosen: list[Case], settings: dict[str, Any]) -> dict[str, Any]:
    """Draw all cases, and return each image's scores, the passes and the median seconds of one."""
    images, passes, seconds = [], 0, []
    with timed(pipeline) as draw:
        for start in range(0, len(chosen), BATCH_SIZE):
            part = chosen[start : start + BATCH_SIZE]
            for each in draw([pipeline.settings(case.caption, seed=case.seed, **settings) for case in part],
                             lambda step: None):  # fmt: skip
                images.append(np.asarray(each.image))
                passes = each.passes
                seconds.append(each.seconds)
    read = judge.read(np.stack(images))
    scores = [score(case.scene, seen).values for case, seen in zip(chosen, read, strict=True)]
    rows = {name: [each[name] for each in scores] for name in SCORES}
    return {**rows, "passes": passes, "seconds": float(np.median(seconds))}


def main() -> None:
    """Measure all runs; what is done is written after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("student")
    parser.add_argument("result", type=Path)
    parser.add_argument("--captions", type=int, default=240)
    parser.add_argument("--teacher", default="mini-ssd-1b")
    parser.add_argument("--known", type=Path)
    given = parser.parse_args()
    known = json.loads(given.known.read_text()) if given.known else {"captions": given.captions, "runs": {}}
    if known["captions"] != given.captions:
        parser.error(f"{given.known} has {known['captions']} captions, not {given.captions}")
    judge, chosen = load_judge(), cases(given.captions)
    pipelines = {name: Pipeline.load(name, device="cpu") for name in (given.teacher, given.student)}
    found: dict[str, Any] = {}
    for label, (model, settings) in runs(given.teacher, given.student).items():
        begin = time.perf_counter()
        is_known = model == given.teacher and label in known["runs"]
        row = known["runs"][label] if is_known else measure(pipelines[model], judge, chosen, settings)
        reference = found.get(REFERENCE, row)
        for name in SCORES:
            row[f"{name}_mean"] = estimate(row[name])._asdict()
            row[f"{name}_against_reference"] = difference(reference[name], row[name])._asdict()
        found[label] = {"settings": settings, **row}
        given.result.write_text(json.dumps({"captions": given.captions, "runs": found}) + "\n")
        seconds = time.perf_counter() - begin
        print(label, row["right_mean"], row["right_against_reference"], f"{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
