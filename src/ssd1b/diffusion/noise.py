"""Noise that depends on an image's seed alone."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

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
