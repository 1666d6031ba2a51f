"""Measure how much faster a student's UNet is than its teacher's, with interleaved forward passes.

python benchmarks/student.py --teacher mini-sdxl --student mini-ssd-1b --out docs/log/student-speed.json
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssd1b import Pipeline
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import example_inputs
from ssd1b.saving import replacing
from ssd1b.weights.files import write_json

BATCHES = (2, 16, 64)


@torch.inference_mode()
def seconds(unet: UNet, batch: int, cells: int) -> float:
    """Time one forward pass."""
    inputs = example_inputs(unet.layout, batch, cells, cells, fill=torch.randn)
    inputs = inputs.to("cpu", unet.dtype)
    start = time.perf_counter()
    unet(*inputs)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="mini-sdxl")
    parser.add_argument("--student", default="mini-ssd-1b")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pipelines = [Pipeline.load(name, device="cpu") for name in (options.teacher, options.student)]
    teacher, student = (pipeline.unet for pipeline in pipelines)
    sizes = [sum(each.numel() for each in unet.state_dict().values()) for unet in (teacher, student)]
    layout = pipelines[0].layout
    cells = layout.size // layout.vae.factor
    figures: dict[str, Any] = {
        "parameters": sizes, "share": sizes[1] / sizes[0], "dtype": str(pipelines[0].dtype),
        "threads": torch.get_num_threads(), "batches": {},
    }  # fmt: skip
    for batch in BATCHES:
        rounds = [
            [seconds(unet, batch, cells) for unet in (teacher, student)] for _ in range(options.rounds + 1)
        ]
        rows = np.array(rounds[1:])
        ratios = rows[:, 0] / rows[:, 1]
        figures["batches"][str(batch)] = {
            "teacher": float(np.median(rows[:, 0])), "student": float(np.median(rows[:, 1])),
            "faster": float(np.median(ratios)), "low": float(ratios.min()), "high": float(ratios.max()),
        }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        with replacing(options.out) as aside:
            write_json(aside, figures)


if __name__ == "__main__":
    main()
