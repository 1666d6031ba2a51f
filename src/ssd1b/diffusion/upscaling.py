"""Enlargement of latents between the passes of the hires fix."""

from typing import TypeAlias

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssd1b.tensors import Latents
from ssd1b.upscalers import Upscaler

Enlarged: TypeAlias = Float[Tensor, "batch 4 high wide"]
"""Latents of another size than those they were made from."""


def covering(cells: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Compute the size with the shape of ``cells`` that covers ``wanted``: one side is equal, the other cut.

    As in AUTOMATIC1111 (``calculate_target_resolution`` of ``modules/processing.py``), for any unit.

    Args:
        cells: height and width.
        wanted: height and width to cover.
    """
    height, width = cells
    high, wide = wanted
    if width * high < wide * height:
        return max(wide * height // width, high), wide
    return high, max(high * width // height, wide)


def enlarge_latents(latents: Latents, size: tuple[int, int], upscaler: Upscaler) -> Enlarged:
    """Enlarge latents to a height and width in cells."""
    interpolation = {"antialias": True} if upscaler.antialias else {}
    return F.interpolate(latents, size=size, mode=upscaler.mode, **interpolation)


def cut(latents: Latents, size: tuple[int, int]) -> Enlarged:
    """Cut latents to a height and width in cells, equally on both sides."""
    top, left = ((have - want) // 2 for have, want in zip(latents.shape[2:], size, strict=True))
    return latents[:, :, top : top + size[0], left : left + size[1]].contiguous()
