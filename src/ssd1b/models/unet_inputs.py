"""The arguments of one forward pass of a UNet."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssd1b.layouts import UNetLayout
from ssd1b.tensors import PooledEmbeds, PromptEmbeds, TimeIds, Timesteps, UNetLatents

TIMESTEP = 500.0
"""Diffusion time of example inputs, in the middle of SDXL's schedule."""


class UNetInputs(NamedTuple):
    """The arguments of ``UNet.forward`` in order, for ``unet(*inputs)``.

    Layouts that embed the guidance scale take ``guidance_embeds`` after these.

    Attributes:
        latents: noisy latents at unit variance; for inpainting mask and masked picture after them.
        timesteps: diffusion times in [0, 999], float32.
        prompt_embeds: penultimate hidden states of both text encoders.
        pooled_prompt_embeds: projected end-of-text state of the second text encoder.
        time_ids: original size, crop and target size in pixels, float32.
    """

    latents: UNetLatents
    timesteps: Timesteps
    prompt_embeds: PromptEmbeds
    pooled_prompt_embeds: PooledEmbeds
    time_ids: TimeIds

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "UNetInputs":
        """Move to a device and convert to a number format.

        ``timesteps`` and ``time_ids`` stay in float32: near 999 bfloat16 has only multiples of 4.
        """
        return UNetInputs(
            self.latents.to(device, dtype),
            self.timesteps.to(device),
            self.prompt_embeds.to(device, dtype),
            self.pooled_prompt_embeds.to(device, dtype),
            self.time_ids.to(device),
        )


def example_inputs(
    layout: UNetLayout, batch: int, height: int, width: int, *, tokens: int = 77,
    fill: Callable[..., Tensor] = torch.zeros,
) -> UNetInputs:  # fmt: skip
    """Make inputs for measurements, in float32 on torch's default device.

    Args:
        layout: the UNet.
        batch: number of images.
        height: height of the latents.
        width: width of the latents.
        tokens: length of the text.
        fill: makes a tensor of a shape, such as ``torch.zeros`` or ``torch.randn``.
    """
    sizes = [8.0 * height, 8.0 * width]
    return UNetInputs(
        fill(batch, layout.in_channels, height, width),
        torch.full((batch,), TIMESTEP),
        fill(batch, tokens, layout.cross_attention_dim),
        fill(batch, layout.pooled_dim),
        torch.tensor([[*sizes, 0.0, 0.0, *sizes]]).expand(batch, -1),
    )
