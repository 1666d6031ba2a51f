"""Noise that depends on an image's seed alone."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ssd1b.tensors import Latents

Noise: TypeAlias = Callable[[], Latents]
"""Each call draws fresh standard normal latents, float32."""


def noise_source(seeds: Sequence[int], height: int, width: int, device: torch.device) -> Noise:
    """Make the noise of a batch: the first call gives the initial latents, later ones the sampler's noise.

    Each image has its own generator, always on the CPU, so that its noise depends neither on the batch nor
    on the device. diffusers draws the same numbers in float32 when given
    ``[torch.Generator("cpu").manual_seed(seed) for seed in seeds]``.

    Args:
        seeds: one per image, 0 to 2^32 - 1; the generator ignores higher bits.
        height: height of the latents, an eighth of the image's.
        width: width of the latents.
        device: device of the returned noise.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    # Pinned memory lets the copy overlap with the model's computation.
    pinned = device.type == "cuda"

    def draw() -> Latents:
        batch = torch.empty(len(generators), 4, height, width, pin_memory=pinned)
        for latents, generator in zip(batch, generators, strict=True):
            latents.normal_(generator=generator)
        return batch.to(device, non_blocking=pinned)

    return draw


def centred(noise: Float[Tensor, "batch 4 other_high other_wide"], ground: Latents) -> Latents:
    """Put noise of another size in the middle of noise: what is larger is cut, and what is left over stays.

    As AUTOMATIC1111's "resize seed from" (``modules/rng.ImageRNG.first``), also in how odd differences are
    rounded, so that the objects of an image remain at another size.

    Args:
        noise: standard normal latents of any size.
        ground: standard normal latents of the image's size.

    Returns:
        New latents of the image's size.
    """
    found = ground.clone()
    into, out = zip(*map(_middle, ground.shape[2:], noise.shape[2:]), strict=True)
    found[..., into[0], into[1]] = noise[..., out[0], out[1]]
    return found


def _middle(side: int, other: int) -> tuple[slice, slice]:
    """Cells of a side into which another one's middle is put, and the other's cells that are put there."""
    offset = (side - other) // 2
    count = other if offset >= 0 else other + 2 * offset
    into, out = max(offset, 0), max(-offset, 0)
    return slice(into, into + count), slice(out, out + count)


def slerp(low: Latents, high: Latents, share: Float[Tensor, " batch"]) -> Latents:
    """Turn noise towards other noise along the arc between them, which keeps its variance.

    As AUTOMATIC1111's ``modules/rng.slerp``: the angle is measured for each column of each channel, that is,
    along the height, and for any other measure its variation seeds would give other images.

    Args:
        low: the noise at share 0, unchanged there.
        high: the noise at share 1.
        share: 0 to 1, for each image.
    """
    part = share.to(low)[:, None, None, None]
    cosine = torch.cosine_similarity(low, high, dim=2)[:, :, None].clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    turned = (torch.sin((1 - part) * angle) * low + torch.sin(part * angle) * high) / sine
    straight = (1 - part) * low + part * high
    return torch.where(part == 0, low, torch.where(sine < 1e-4, straight, turned))
