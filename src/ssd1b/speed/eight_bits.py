"""Weights in eight bits, multiplied in the network's own number format: a quarter of float32's memory."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 2**14
"""Numbers in a matrix or kernel below which eight bits save nothing."""


class EightBit(nn.Module):
    """A linear layer or a convolution whose weights are whole numbers from -127 to 127, by a scale a row.

    They become numbers of the input's format again at each call, which takes time and, for one layer at a
    time, memory.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        axes = tuple(range(1, weight.ndim))
        scale = weight.abs().amax(dim=axes, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self._multiply: Callable[..., Tensor] = F.linear
        if isinstance(layer, nn.Conv2d):
            how = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
            self._multiply = partial(F.conv2d, **how)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self._multiply(x, self.weight.to(x.dtype).mul_(self.scale.to(x.dtype)), self.bias)


def keep_in_eight_bits(network: nn.Module) -> None:
    """Put layers with weights in eight bits in place of a network's own, one after the other.

    Args:
        network: with its weights; it is for drawing from then on and does not learn.
    """
    for name, child in network.named_children():
        layer = cast(Any, child)
        if isinstance(child, nn.Linear | nn.Conv2d) and layer.weight.numel() >= SMALLEST:
            setattr(network, name, EightBit(layer).eval())
        else:
            keep_in_eight_bits(child)
