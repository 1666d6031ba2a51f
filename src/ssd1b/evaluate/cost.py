"""The cost of a picture, in multiplications or passes of the UNet: figures that depend on no machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssd1b.layouts import UNetLayout
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import example_inputs


def unet_macs(layout: UNetLayout, height: int, width: int, tokens: int = 77) -> int:
    """Multiply-accumulate operations of one forward pass for one picture, counted on meta tensors.

    Args:
        layout: the UNet.
        height: of the latents.
        width: of the latents.
        tokens: of the text.
    """
    return _macs(layout, height, width, tokens)[0]


@cache
def deep_share(layout: UNetLayout, height: int, width: int) -> float:
    """Share of a pass that ``feature_reuse`` leaves out when it takes the deep features from memory.

    Args:
        layout: the UNet.
        height: of the latents.
        width: of the latents.
    """
    whole, deep = _macs(layout, height, width, 77)
    return deep / whole


def _macs(layout: UNetLayout, height: int, width: int, tokens: int) -> tuple[int, int]:
    """Operations of a whole pass, and of its levels but the finest."""
    deep = 0

    def through(shallow: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        nonlocal deep
        before = counter.get_total_flops()
        found = compute(shallow)
        deep = counter.get_total_flops() - before
        return found

    with torch.device("meta"):
        unet = UNet(layout)
        inputs = example_inputs(layout, 1, height, width, tokens=tokens)
        scales = layout.guidance_embed_dim and torch.empty(1, layout.guidance_embed_dim)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            unet(*inputs, scales, through)
    return counter.get_total_flops() // 2, deep // 2


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """Count what passes through a module: afterwards the sum of the list is the rows of all its batches."""
    batches: list[int] = []
    hook = module.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    try:
        yield batches
    finally:
        hook.remove()
