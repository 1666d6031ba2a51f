"""Generation from a picture: where it starts, and which parts of it are kept.

A mask says how much of the run may change a cell: 1 all of it, 0 nothing, 0.3 its last 30 % (differential
diffusion, 2306.00950). What is kept follows the picture with the seed's noise at every noise level, so the
network sees a consistent image (RePaint's known region, 2201.09865, without its resampling).
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssd1b.diffusion.denoiser import Denoise
from ssd1b.tensors import Latents

Mask: TypeAlias = Float[Tensor, "batch 1 cells_high cells_wide"]
"""0 to 1: share of the run, from its end, in which a cell may change."""


def cell_mask(levels: Float[Tensor, "batch 1 height width"], factor: int) -> Mask:
    """Reduce a mask of pixels to latent cells.

    A cell takes the largest value of its pixels, so that the thinnest stroke is repainted in full; the parts
    of a cell that are outside the mask are restored from the picture after decoding.

    Args:
        levels: 0 to 1.
        factor: pixels per cell, along each axis.
    """
    return F.max_pool2d(levels, factor)


def free_cells(mask: Mask, step: int, steps: int) -> Mask:
    """Compute which cells may change in a step, 1 or 0: those of mask ``m`` in the last ``ceil(m * steps)``.

    Args:
        mask: the mask.
        step: number of the step, from 0.
        steps: number of steps of the run.
    """
    return (mask > 1 - (step + 1) / steps).to(mask.dtype)


def inpainting(
    denoise: Denoise, original: Latents, noise: Latents, mask: Mask, sigmas: Sequence[float]
) -> Denoise:
    """Wrap a denoiser so that masked cells are generated and all others keep the picture.

    Outside the mask the network sees ``original + sigma * noise`` from the second step on, and ``original``
    takes the place of its prediction. A sampler moves each cell by itself, so for cells with a mask of 0 or 1
    this is the same as blending the latents after each step, as diffusers does; it also holds within the
    steps of samplers that evaluate twice.

    Args:
        denoise: the model.
        original: latents of the picture.
        noise: the noise that was added to it at the start.
        mask: the mask.
        sigmas: noise levels of the run, falling; the last one is 0.
    """
    steps = len(sigmas) - 1
    rising = [-sigma for sigma in sigmas]

    def denoise_masked(x: Latents, sigma: float) -> Latents:
        step = min(max(bisect_right(rising, -sigma) - 1, 0), steps - 1)
        free = free_cells(mask, step, steps)
        if sigma < sigmas[0]:  # before, the latents are as they were started, possibly from noise alone
            x = free * x + (1 - free) * (original + sigma * noise)
        denoised = denoise(x, sigma)
        return free * denoised + (1 - free) * original

    return denoise_masked
