"""Number of CPU threads: as many as a forward pass of the UNet keeps busy.

Threads split every matrix product and synchronise after it. With small products, synchronisation costs more
than splitting saves. GNU OpenMP's threads also wait by spinning, so next to another busy process they occupy
the core that the last of them needs.
"""

import os
from functools import cache
from typing import Literal, TypeAlias

import torch

from ssd1b.layouts import UNetLayout

Threads: TypeAlias = int | Literal["auto"] | None
"""A number, "auto" to choose it by network and image size, or None to leave torch's setting unchanged."""

MACS_PER_THREAD = 4e9
"""Multiply-accumulate operations of a step from which another thread is worthwhile."""

_TOKENS = 77

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def estimate_unet_macs(layout: UNetLayout, height: int, width: int) -> float:
    """Estimate the multiply-accumulate operations of one forward pass, to within a fifth.

    ``evaluate.cost.unet_macs`` counts them exactly, but its import takes longer than a small image.

    Args:
        layout: the UNet's layout.
        height: height of the latents.
        width: width of the latents.
    """
    macs, previous = 0.0, layout.levels[0].channels
    for halvings, level in enumerate(layout.levels):
        cells, channels = height * width / 4**halvings, level.channels
        depths = [*level.down, *level.up]
        # A resnet is two 3 x 3 convolutions; on the way up the first also reads a skip of the same width.
        resnets = 9 * channels * (previous + channels + 2 * channels * (len(level.down) - 1))
        resnets += 27 * channels**2 * len(level.up)
        if level is layout.levels[-1] and layout.mid is not None:
            depths.append(layout.mid)
            resnets += 36 * channels**2
        if halvings:  # downsampling and upsampling: one convolution each
            macs += 9 * cells * (previous**2 + 4 * channels**2)
        # Self-attention, cross-attention, and a feed-forward network of four times the width.
        block = 18 * channels**2 + 2 * (cells + _TOKENS) * channels
        text = 2 * _TOKENS * layout.cross_attention_dim * channels
        projections = 2 * channels**2 * sum(map(bool, depths))
        macs += cells * (resnets + projections + sum(depths) * block) + sum(depths) * text
        previous = channels
    return macs


def suitable_threads(macs: float, available: int) -> int:
    """Choose the number of threads, at most ``available``, for a step of so many operations."""
    return max(1, min(available, int(macs / MACS_PER_THREAD)))


def batch_threads(layout: UNetLayout, height: int, width: int, batch: int, available: int) -> int:
    """Choose the number of threads for guided steps of a batch.

    Args:
        layout: the UNet's layout.
        height: height of the latents.
        width: width of the latents.
        batch: number of images.
        available: the largest number.
    """
    return suitable_threads(2 * batch * estimate_unet_macs(layout, height, width), available)


def use_threads(threads: Threads, layout: UNetLayout, height: int, width: int, batch: int = 1) -> None:
    """Set torch's number of threads, for the whole process, to suit guided steps of a batch.

    "auto" uses at most the number that torch has at the first call, and changes nothing if the user has set
    ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS``.

    Args:
        threads: see ``Threads``.
        layout: the UNet's layout.
        height: height of the latents.
        width: width of the latents.
        batch: number of images.
    """
    if threads == "auto":
        if any(os.environ.get(name) for name in _VARIABLES):
            return
        threads = batch_threads(layout, height, width, batch, _initial_threads())
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@cache
def _initial_threads() -> int:
    return torch.get_num_threads()
