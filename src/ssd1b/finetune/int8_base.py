"""Frozen weights in int8 during a training: QLoRA's idea (2305.14314), with one scale per output channel.

A weight is converted for each product, and again for its gradient, so that one converted weight is in memory
at a time. The gradient of the input is that of the converted weight; the weight itself has none.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torch.nn.utils import parametrize

from ssd1b.speed.weight_only import SMALLEST, dequantize, quantize

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, dilation and groups of a convolution."""


class Int8Weight(nn.Module):
    """A parametrization: int8 values and a scale per output channel, whose format is that of the weight."""

    def forward(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return the weight."""
        return dequantize(values, scale, scale.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize a weight, ``[out, ...] -> [out, ...], [out, 1, ...]``."""
        return quantize(weight)


class Int8Product(torch.autograd.Function):
    """A linear layer or convolution that keeps int8 values for the backward pass, no converted weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry | None
    ) -> Tensor:
        """Apply the layer.

        Args:
            ctx: of autograd.
            x: ``[..., in]``, or ``[B, in, H, W]`` with a geometry.
            values: of the weight, int8.
            scale: of its output channels.
            bias: frozen.
            geometry: of a convolution; None for a linear layer.
        """
        ctx.save_for_backward(values, scale)
        ctx.size, ctx.geometry = x.shape, geometry
        weight = dequantize(values, scale, x.dtype)
        return F.linear(x, weight, bias) if geometry is None else F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of the input."""
        values, scale = ctx.saved_tensors
        weight = dequantize(values, scale, grads[0].dtype)
        if ctx.geometry is None:
            of_input = grads[0] @ weight
        else:
            of_input = conv2d_input(ctx.size, weight, grads[0], *ctx.geometry)
        return of_input, None, None, None, None


def store_in_int8(network: nn.Module) -> None:
    """Store the large weights of a frozen network in int8, in place, one after the other.

    Layers stay linear layers and convolutions, to which adapters can be added. An adapter that changes
    weights adds its change to the converted weight.
    """
    for layer in list(network.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.numel() >= SMALLEST:
            parametrize.register_parametrization(layer, "weight", Int8Weight(), unsafe=True)
            layer.forward = partial(_multiply, layer)  # type: ignore[method-assign]


def _multiply(layer: Any, x: Tensor) -> Tensor:
    weights = layer.parametrizations.weight
    if len(weights) > 1:  # an adapter changes the weight, and the backward pass needs the changed one
        return type(layer).forward(layer, x)
    geometry = None
    if isinstance(layer, nn.Conv2d):
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return Int8Product.apply(x, weights.original0, weights.original1, layer.bias, geometry)
