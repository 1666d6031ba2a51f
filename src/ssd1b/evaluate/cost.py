"""The cost of an image in UNet multiplications or passes, which do not depend on the machine."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssd1b.layouts import UNetLayout
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import example_inputs


def unet_macs(layout: UNetLayout, height: int, width: int, tokens: int = 77) -> int:
    """Multiply-accumulate operations of one forward pass for one image, counted on meta tensors.

    Args:
        layout: the UNet's layout.
        height: height of the latents.
        width: width of the latents.
        tokens: length of the text embeddings.
    """
    return _macs(layout, height, width, tokens)[0]


@cache
def deep_share(layout: UNetLayout, height: int, width: int) -> float:
    """Share of a pass that ``feature_reuse`` saves when it reuses the deep features.

    Args:
        layout: the UNet's layout.
        height: height of the latents.
        width: width of the latents.
    """
    total, deep = _macs(layout, height, width, 77)
    return deep / total


def _macs(layout: UNetLayout, height: int, width: int, tokens: int) -> tuple[int, int]:
    """Operations of a full pass, and of all its levels except the finest."""
    deep = 0

    def through(shallow: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        nonlocal deep
        before = counter.get_total_flops()
        output = compute(shallow)
        deep = counter.get_total_flops() - before
        return output

    with torch.device("meta"):
        unet = UNet(layout)
        inputs = example_inputs(layout, 1, height, width, tokens=tokens)
        scales = layout.guidance_embed_dim and torch.empty(1, layout.guidance_embed_dim)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            unet(*inputs, scales, through)
    return counter.get_total_flops() // 2, deep // 2


@contextmanager
def count_rows(module: nn.Module) -> Generator[list[int], None, None]:
    """Record the batch size of each call of a module for the duration of the context."""
    batches: list[int] = []
    hook = module.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    try:
        yield batches
    finally:
        hook.remove()
