"""Noise that belongs to a picture's seed and to nothing else."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from ssd1b.tensors import Latents

Noise: TypeAlias = Callable[[], Latents]
"""Each call draws fresh standard normal latents, float32."""


def noise_source(seeds: Sequence[int], height: int, width: int, device: torch.device) -> Noise:
    """Make the noise of a batch: the first draw starts the pictures, later ones feed stochastic samplers.

    One generator per picture, and on the CPU whatever the device: a seed's picture depends neither on its
    batch nor on the machine. Diffusers draws the same numbers when it is given
    ``[torch.Generator("cpu").manual_seed(seed) for seed in seeds]`` and float32.

    Args:
        seeds: one per picture, 0 to 2^32 - 1: of larger ones the generator takes the lowest 32 bits.
        height: of the latents, an eighth of the picture's.
        width: of the latents.
        device: where the noise is wanted.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    # Pinned memory lets the copy run beside the model instead of waiting for it.
    pinned = device.type == "cuda"

    def draw() -> Latents:
        batch = torch.empty(len(generators), 4, height, width, pin_memory=pinned)
        for picture, generator in zip(batch, generators, strict=True):
            picture.normal_(generator=generator)
        return batch.to(device, non_blocking=pinned)

    return draw
