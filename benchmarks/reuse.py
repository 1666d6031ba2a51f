"""Measure what keeping deep features between steps saves and costs, on the miniature, by the judge.

    python benchmarks/reuse.py --captions 48 --tolerances 0.05,0.1,0.2,0.3

All pictures are drawn from the same captions and noise; differences are paired with the exact pictures.
"""

import argparse
import json
import time

import numpy as np

from ssd1b import Pipeline
from ssd1b.evaluate.drawing import draw
from ssd1b.evaluate.reconstruction import psnr
from ssd1b.evaluate.statistics import difference
from ssd1b.tabletop.evaluation import BATCH_SIZE, SEED, cases, score
from ssd1b.tabletop.judge import load_judge

STREAM = SEED + 13


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-ssd-1b")
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tolerances", default="0.05,0.1,0.2,0.3")
    options = parser.parse_args()
    pipeline, judge = Pipeline.load(options.model, device="cpu", dtype="fp32"), load_judge()
    deep = pipeline.unet.down_blocks[1]
    chosen = cases(options.captions, stream=STREAM)
    tasks = [(case.caption, case.seed) for case in chosen]
    exact = None
    for tolerance in (0.0, *map(float, options.tolerances.split(","))):
        computed: list[int] = []
        hook = deep.resnets[0].register_forward_hook(lambda *_, calls=computed: calls.append(1))
        start = time.perf_counter()
        drawn = draw(pipeline, tasks, batch_size=BATCH_SIZE, steps=options.steps, feature_reuse=tolerance)
        pictures = np.stack([np.asarray(image) for image, _ in drawn])
        seconds = (time.perf_counter() - start) / len(tasks)
        hook.remove()
        found = zip(chosen, judge.read(pictures), strict=True)
        flawless = np.array([score(case.scene, seen).flawless for case, seen in found])
        exact = exact or (pictures, flawless, len(computed))
        row = {
            "tolerance": tolerance,
            "computed": len(computed) / exact[2],
            "seconds": seconds,
            "psnr": float(np.median(psnr(pictures, exact[0]))),
            "flawless": float(flawless.mean()),
            "difference": difference(exact[1], flawless)._asdict(),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
