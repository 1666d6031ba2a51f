"""What a picture costs, in multiplications: a figure that does not depend on the machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssd1b.layouts import UNetLayout
from ssd1b.models.unet import UNet


def unet_macs(layout: UNetLayout, height: int, width: int, tokens: int = 77) -> int:
    """Multiply-accumulate operations of one forward pass for one picture, counted on meta tensors.

    Args:
        layout: the UNet.
        height: of the latents.
        width: of the latents.
        tokens: of the text.
    """
    with torch.device("meta"):
        unet = UNet(layout)
        x = torch.empty(1, layout.in_channels, height, width)
        embeds = torch.empty(1, tokens, layout.cross_attention_dim)
        pooled = torch.empty(1, layout.pooled_dim)
        scales = layout.guidance_embed_dim and torch.empty(1, layout.guidance_embed_dim)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            unet(x, torch.empty(1), embeds, pooled, torch.empty(1, 6), scales)
    return counter.get_total_flops() // 2


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """Count what passes through a module: afterwards the sum of the list is the rows of all its batches."""
    batches: list[int] = []
    hook = module.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    try:
        yield batches
    finally:
        hook.remove()
