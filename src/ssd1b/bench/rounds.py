"""Timing that is robust on busy machines: engines take turns, and ratios are computed within each round."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssd1b.bench.case import Case
from ssd1b.bench.engines import ENGINES, EngineChoice, Work
from ssd1b.runtime import dtype_name
from ssd1b.speed.packing import pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Measurements of one engine.

    Attributes:
        engine: name; dtype: number format.
        seconds: median time of one call; low and high: the shortest and the longest.
        ratio: time relative to the first peer, median over rounds; ratio_low and ratio_high: smallest and
            largest.
        apart: relative error: norm of the difference from the reference's output, over that output's norm.
        gflops: billions of floating-point operations per second, two per multiply-accumulate, counting
            operations that the engine avoids.
        share: fraction of the measured rate of matrix products in this number format; may exceed 1 with int8.
        preparation: seconds of preparation, including the first call.
        memory: bytes by which the process grew during preparation; on a GPU, growth of its peak use.
    """

    engine: str
    dtype: str
    seconds: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    apart: float
    gflops: float
    share: float
    preparation: float
    memory: int


@torch.inference_mode()
def compare(
    case: Case, choices: Sequence[EngineChoice], *, reference: EngineChoice, rounds: int,
    device: torch.device, advance: Callable[[str], None] = lambda message: None,
) -> list[Row]:  # fmt: skip
    """Time engines on a case in turn: A B C, A B C ...

    Args:
        case: the computation.
        choices: engines; ratios are relative to the second, if there are several.
        reference: engine whose output the others are compared with.
        rounds: number of rounds.
        device: device to run on.
        advance: called with a description of the work ahead, ``(rounds + 1) * len(choices) + 1`` times.
    """
    advance(f"{reference}: reference")
    expected = ENGINES[reference.name].prepare(case, reference.dtype, device)().float().cpu()
    gc.collect()
    works: list[Work] = []
    preparations, growths, errors = [], [], []
    for choice in choices:
        advance(f"{choice}: prepare")
        before, start = _reset_memory(device), time.perf_counter()
        works.append(ENGINES[choice.name].prepare(case, choice.dtype, device))
        output = works[-1]()
        _synchronize(device)
        preparations.append(time.perf_counter() - start)
        gc.collect()
        growths.append(_peak_memory(device) - before)
        errors.append(float((output.float().cpu() - expected).norm() / expected.norm()))
    peaks = {dtype: product_rate(dtype, device) for dtype in {choice.dtype for choice in choices}}
    seconds = np.empty((rounds, len(choices)))
    for number in range(rounds):
        for index, work in enumerate(works):
            advance(f"{choices[index]}: round {number + 1}")
            start = time.perf_counter()
            work()
            _synchronize(device)
            seconds[number, index] = time.perf_counter() - start
    ratios = seconds / seconds[:, [min(1, len(choices) - 1)]]
    rows = []
    for index, choice in enumerate(choices):
        times, relative = seconds[:, index], ratios[:, index]
        rate = 2 * case.macs / float(np.median(times))
        rows.append(
            Row(
                engine=choice.name, dtype=dtype_name(choice.dtype), seconds=float(np.median(times)),
                low=float(times.min()), high=float(times.max()), ratio=float(np.median(relative)),
                ratio_low=float(relative.min()), ratio_high=float(relative.max()), apart=errors[index],
                gflops=rate / 1e9, share=rate / peaks[choice.dtype],
                preparation=preparations[index], memory=growths[index],
            )
        )  # fmt: skip
    return rows


PRODUCTS = {"cpu": ((2048, 640, 5120), (512, 1280, 1280), (4096, 640, 640)), "cuda": ((8192, 8192, 8192),)}
"""Rows, inputs and outputs of matrices: SSD-1B's on CPUs, where larger ones are no faster, and on a GPU large
enough to saturate it."""

_QUEUED = 8
"""Products that are queued on an accelerator between synchronisations, to hide launch latency."""


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the machine's best rate of matrix products, packed or not, in operations per second."""
    best = 0.0
    queued = 1 if device.type == "cpu" else _QUEUED
    for rows, inputs, outputs in PRODUCTS.get(device.type, PRODUCTS["cpu"]):
        x = torch.randn(rows, inputs).to(device, dtype)
        for packed in (False, True):
            layers = torch.nn.Sequential(torch.nn.Linear(inputs, outputs)).to(device, dtype)
            layers.requires_grad_(False)
            if packed:
                pack(layers)
            for _ in range(4):
                start = time.perf_counter()
                for _ in range(queued):
                    layers(x)
                _synchronize(device)
                seconds = (time.perf_counter() - start) / queued
                best = max(best, 2 * rows * inputs * outputs / seconds)
    return best


def _reset_memory(device: torch.device) -> int:
    """Return the bytes used by the process or on the GPU, and reset the GPU's peak."""
    if device.type != "cuda":
        return _peak_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_memory(device: torch.device) -> int:
    import psutil

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
