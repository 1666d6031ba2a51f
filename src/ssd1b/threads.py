"""How many threads of the CPU draw: as many as a step of the network keeps busy.

Threads share every product of matrices and wait for each other after each. Where the products are small,
waiting takes longer than what sharing saves; and GNU OpenMP's threads wait by spinning, so that beside
another busy process they keep the core that the last of them needs.
"""

import os
from functools import cache
from typing import Literal, TypeAlias

import torch

from ssd1b.layouts import UNetLayout

Threads: TypeAlias = int | Literal["auto"] | None
"""A number, "auto" for one that suits the network and the picture, or None to leave torch's setting alone."""

WORK = 4e9
"""Multiplications of a step that make another thread worth its while."""

_TOKENS = 77

_SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def unet_work(layout: UNetLayout, height: int, width: int) -> float:
    """Estimate the multiplications of one forward pass, to a fifth of ``evaluate.cost.unet_macs``.

    That counts them exactly, and takes longer to import than a small picture to draw.

    Args:
        layout: the UNet.
        height: of the latents.
        width: of the latents.
    """
    work, before = 0.0, layout.levels[0].channels
    for halvings, level in enumerate(layout.levels):
        cells, channels = height * width / 4**halvings, level.channels
        depths = [*level.down, *level.up]
        # A resnet is two convolutions of 3 x 3; on the way up the first also reads a skip of that width.
        resnets = 9 * channels * (before + channels + 2 * channels * (len(level.down) - 1))
        resnets += 27 * channels**2 * len(level.up)
        if level is layout.levels[-1] and layout.mid is not None:
            depths.append(layout.mid)
            resnets += 36 * channels**2
        if halvings:  # halving and doubling the map: a convolution each
            work += 9 * cells * (before**2 + 4 * channels**2)
        # Attention to the picture and to the text, and a feed-forward network of four times the width.
        block = 18 * channels**2 + 2 * (cells + _TOKENS) * channels
        text = 2 * _TOKENS * layout.cross_attention_dim * channels
        projections = 2 * channels**2 * sum(map(bool, depths))
        work += cells * (resnets + projections + sum(depths) * block) + sum(depths) * text
        before = channels
    return work


def suitable(work: float, available: int) -> int:
    """Choose the number of threads for a step.

    Args:
        work: multiplications of the step.
        available: most threads.
    """
    return max(1, min(available, int(work / WORK)))


def use_threads(threads: Threads, layout: UNetLayout, height: int, width: int, batch: int = 1) -> None:
    """Set torch's number of threads, which is the whole process's, for guided steps of a batch.

    "auto" takes at most what torch has when this is first called, and leaves it alone where the user has set
    ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS``.

    Args:
        threads: see ``Threads``.
        layout: the UNet.
        height: of the latents.
        width: of the latents.
        batch: pictures at once.
    """
    if threads == "auto":
        if any(os.environ.get(name) for name in _SET_BY_USER):
            return
        threads = suitable(2 * batch * unet_work(layout, height, width), _available())
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@cache
def _available() -> int:
    return torch.get_num_threads()
