"""Measure the image quality that faster options cost, on the miniature, by the judge and by CLIP score.

    python benchmarks/price.py --captions 96 'feature_reuse=0.2' 'feature_reuse=0.2; steps=10'
    python benchmarks/price.py 'backend="openvino"; quantized="int8"'

All variants use the same captions and noise; differences are paired with the exact images. One batch is
generated before the clock starts.
"""

import argparse
import json
import time
from dataclasses import fields
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from ssd1b import Pipeline
from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.drawing import timed
from ssd1b.evaluate.reconstruction import psnr
from ssd1b.evaluate.statistics import difference, estimate
from ssd1b.execution import Execution
from ssd1b.jobs.captions import draw_captions
from ssd1b.jobs.executor import Inline
from ssd1b.model import Model
from ssd1b.tabletop.judge.evaluation import SEED, cases, score
from ssd1b.tabletop.judge.judge import load_judge

STREAM = SEED + 13


@cache
def pipeline(model: str, execution: Execution) -> Pipeline:
    return Pipeline.load(model, device="cpu", dtype="fp32", execution=execution, notify=print)


def parse(variant: str) -> dict[str, Any]:
    pairs = (each.split("=", 1) for each in variant.split(";") if each.strip())
    return {name.strip(): json.loads(value) for name, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the image quality that faster options cost.")
    parser.add_argument("variants", nargs="+", metavar="NAME=JSON; ...")
    parser.add_argument("--model", default="mini-ssd-1b")
    parser.add_argument("--captions", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1, help="batch size")
    options = parser.parse_args()
    judge = load_judge()
    model = Model.find(options.model)
    clip = ClipScore.load(model.path, pipeline(options.model, Execution()).text)
    chosen = cases(options.captions, stream=STREAM)
    tasks = [(case.caption, case.seed) for case in chosen]
    captions = [case.caption for case in chosen]
    exact: tuple[Any, ...] = ()
    for variant in ("", *options.variants):
        given = parse(variant)
        execution = {each.name: given.pop(each.name) for each in fields(Execution) if each.name in given}
        variant_pipeline = pipeline(options.model, Execution(**execution))
        draw = partial(draw_captions, model, Inline(lambda name, loaded=variant_pipeline: timed(loaded)))
        settings = {"batch_size": options.batch, "steps": options.steps, **given}
        next(draw(tasks[: options.batch], **settings))
        start = time.perf_counter()
        images = [each.image for each in draw(tasks, **settings)]
        seconds = (time.perf_counter() - start) / len(tasks)
        pictures = np.stack([np.asarray(image) for image in images])
        found = [score(case.scene, seen) for case, seen in zip(chosen, judge.read(pictures), strict=True)]
        flawless = np.array([each.flawless for each in found])
        right = np.array([each.right for each in found])
        with torch.inference_mode():
            likeness = clip(images, captions).diagonal().numpy()
        exact = exact or (pictures, flawless, right, likeness, seconds)
        row = {
            "variant": variant or "exact",
            "seconds": round(seconds, 3),
            "of exact": round(seconds / exact[4], 2),
            "psnr": round(float(np.median(psnr(pictures, exact[0]))), 1),
            "flawless": estimate(flawless)._asdict(),
            "flawless difference": difference(exact[1], flawless)._asdict(),
            "right difference": difference(exact[2], right)._asdict(),
            "clip difference": difference(exact[3], likeness)._asdict(),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
