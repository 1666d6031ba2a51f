"""Weight-only int8: a quarter of float32's memory, computed in the network's number format."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 2**14
"""Elements of the smallest weight that is quantized; smaller ones take hardly any memory."""


class WeightOnlyInt8(nn.Module):
    """A linear layer or convolution with int8 weights, -127 to 127, and one scale per output channel.

    Each call converts the weights to the input's dtype, which takes time, and memory for one layer.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        values, scale = quantize(layer.weight)
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self._multiply: Callable[..., Tensor] = F.linear
        if isinstance(layer, nn.Conv2d):
            geometry = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
            self._multiply = partial(F.conv2d, **geometry)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self._multiply(x, dequantize(self.weight, self.scale, x.dtype), self.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        name = f"{prefix}weight"
        if name in state_dict and state_dict[name].is_floating_point():
            state_dict[name], state_dict[f"{prefix}scale"] = quantize(state_dict[name])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to -127 to 127, ``[out, ...] -> [out, ...], [out, 1, ...]``."""
    weight = weight.detach().float()
    axes = tuple(range(1, weight.ndim))
    scale = weight.abs().amax(dim=axes, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scale).round().to(torch.int8), scale


def dequantize(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of int8 values and their scale in a floating-point format."""
    return values * scale.to(dtype)  # ``values.to(dtype) * scale`` in one pass: 16 bits hold int8 exactly


def quantize_weights(network: nn.Module) -> None:
    """Replace layers by ones with int8 weights, in place, one after the other. Inference only afterwards."""
    for name, child in network.named_children():
        layer = cast(Any, child)
        if isinstance(child, nn.Linear | nn.Conv2d) and layer.weight.numel() >= SMALLEST:
            setattr(network, name, WeightOnlyInt8(layer).eval())
        else:
            quantize_weights(child)
