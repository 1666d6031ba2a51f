"""Timing on machines that do other things, too: engines take turns, and ratios are taken round by round."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssd1b.bench.case import Case
from ssd1b.bench.engines import ENGINES, Choice, Work
from ssd1b.runtime import dtype_name
from ssd1b.speed.packing import pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of an engine.

    Attributes:
        engine: its name; dtype: its number format.
        seconds: of one call, median; low and high: the shortest and the longest.
        ratio: of its seconds to the first peer's, median of the rounds' ratios; ratio_low and ratio_high:
            the smallest and the largest of them.
        apart: norm of the difference from the reference's output, by the norm of that.
        gflops: billions of floating-point operations a second, two to a multiplication; what an engine need
            not compute counts as computed.
        share: of the measured rate of matrix products in its number format; what multiplies in eight bits may
            have more than all of it.
        preparation: seconds of what happens once, the first call included.
        memory: bytes by which the process grew meanwhile; on a GPU, how much more of it was in use at most.
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
    case: Case, choices: Sequence[Choice], *, reference: Choice, rounds: int, device: torch.device,
    advance: Callable[[str], None] = lambda what: None,
) -> list[Row]:  # fmt: skip
    """Time engines on a case in turn: A B C, A B C ...

    Args:
        case: what is computed.
        choices: engines; ratios are to the second, if there are several.
        reference: whose output the others are compared with.
        rounds: how many.
        device: where.
        advance: told what is done next; ``(rounds + 1) * len(choices) + 1`` times in all.
    """
    advance(f"{reference}: for reference")
    expected = ENGINES[reference.name].prepare(case, reference.dtype, device)().float().cpu()
    gc.collect()
    works: list[Work] = []
    preparations, grown, apart = [], [], []
    for choice in choices:
        advance(f"{choice}: prepare")
        before, start = _in_use(device), time.perf_counter()
        works.append(ENGINES[choice.name].prepare(case, choice.dtype, device))
        output = works[-1]()
        _wait(device)
        preparations.append(time.perf_counter() - start)
        gc.collect()
        grown.append(_most_in_use(device) - before)
        apart.append(_apart(output.float().cpu(), expected))
    peaks = {dtype: product_rate(dtype, device) for dtype in {choice.dtype for choice in choices}}
    seconds = np.empty((rounds, len(choices)))
    for number in range(rounds):
        for place, work in enumerate(works):
            advance(f"{choices[place]}: round {number + 1}")
            start = time.perf_counter()
            work()
            _wait(device)
            seconds[number, place] = time.perf_counter() - start
    ratios = seconds / seconds[:, [min(1, len(choices) - 1)]]
    rows = []
    for place, choice in enumerate(choices):
        mine, against = seconds[:, place], ratios[:, place]
        rate = 2 * case.macs / float(np.median(mine))
        rows.append(
            Row(
                engine=choice.name, dtype=dtype_name(choice.dtype), seconds=float(np.median(mine)),
                low=float(mine.min()), high=float(mine.max()), ratio=float(np.median(against)),
                ratio_low=float(against.min()), ratio_high=float(against.max()), apart=apart[place],
                gflops=rate / 1e9, share=rate / peaks[choice.dtype],
                preparation=preparations[place], memory=grown[place],
            )
        )  # fmt: skip
    return rows


PRODUCTS = {"cpu": ((2048, 640, 5120), (512, 1280, 1280), (4096, 640, 640)), "cuda": ((8192, 8192, 8192),)}
"""Rows, inputs and outputs of matrices: on processors as SSD-1B multiplies them, as larger ones are no faster
there; on a GPU such that it has enough to do."""

_TOGETHER = 8
"""Products that an accelerator is given at once, so that none waits for the one before to be noticed."""


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """What the machine reaches at best in matrix products, packed or not: operations a second."""
    best = 0.0
    together = 1 if device.type == "cpu" else _TOGETHER
    for rows, inputs, outputs in PRODUCTS.get(device.type, PRODUCTS["cpu"]):
        x = torch.randn(rows, inputs).to(device, dtype)
        for packed in (False, True):
            layers = torch.nn.Sequential(torch.nn.Linear(inputs, outputs)).to(device, dtype)
            layers.requires_grad_(False)
            if packed:
                pack(layers)
            for _ in range(4):
                start = time.perf_counter()
                for _ in range(together):
                    layers(x)
                _wait(device)
                seconds = (time.perf_counter() - start) / together
                best = max(best, 2 * rows * inputs * outputs / seconds)
    return best


def _in_use(device: torch.device) -> int:
    """Bytes of the process, or of the GPU; from here on its most is counted anew."""
    if device.type != "cuda":
        return _most_in_use(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _most_in_use(device: torch.device) -> int:
    import psutil

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _apart(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).norm() / expected.norm())


def _wait(device: torch.device) -> None:
    """Until what was asked of an accelerator is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
