"""Int8 products and convolutions on CPUs by oneDNN's kernels, with dynamically quantized activations.

Weights are -127 to 127 with one scale per output channel. Activations are 0 to 255 with one scale and one
zero point per tensor, computed from its range at each call, so no calibration is needed. With VNNI they take
half the time of bfloat16 (docs/log), a twentieth of which is finding the range and rounding.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.models.attention import GEGLU
from ssd1b.runtime import cpu_multiplies_int8
from ssd1b.speed.replacement import kernels_work, replace_layers

SMALLEST = 2**14
"""Elements of the smallest weight worth quantizing: below, quantizing its input costs more than it saves."""

_UNQUANTIZED = (
    "conv_in", "conv_out", "time_embedding", "add_embedding", "time_emb_proj", "to_k", "to_v",
    "controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block",
)  # fmt: skip
"""Layers that stay: the first and last convolution, which have few channels and whose errors are visible;
embeddings, which are one row per image; keys and values of the text, which are computed once per image
(``fuse`` has joined those of self-attention); a ControlNet's reading of the picture and its outputs."""

_ZERO_POINT = 128
"""Zero point for which convolution weights are packed. Calls may use any other except 0, which needs another
packing."""

_CHUNK = 2**20
"""Elements that are quantized at a time, so that intermediate values stay in the cache."""


def int8_is_fast() -> bool:
    """Whether the processor has int8 instructions (VNNI), and torch the operators that use them."""
    return cpu_multiplies_int8() and _kernels_work()


class _QuantizedTensor:
    """A tensor quantized to 1 to 255.

    Args:
        x: dense in memory, in any memory format.
    """

    __slots__ = ("scale", "values", "zero_point")

    def __init__(self, x: Tensor) -> None:
        flat = _flattened(x)  # aminmax would copy a channels-last tensor
        low, high = (float(each) for each in torch.aminmax(flat))
        low, high = min(low, 0.0), max(high, 0.0)  # zero must be exact, because convolutions pad with it
        # 253 steps, so that the largest value is at most 255 even if the zero point is rounded up.
        self.scale = max((high - low) / 253, torch.finfo(torch.float32).tiny)
        self.zero_point = 1 + round(-low / self.scale) if math.isfinite(self.scale) else _ZERO_POINT
        # torch vectorises the conversion to int8, -127 to 127; flipping the highest bit gives 1 to 255.
        signed = torch.empty_like(x, dtype=torch.int8)
        buffer, shift = torch.empty(min(_CHUNK, x.numel())), torch.tensor(float(self.zero_point - 128))
        for chunk, out in zip(flat.split(_CHUNK), _flattened(signed).split(_CHUNK), strict=True):
            scaled = buffer[: len(chunk)].copy_(chunk)
            out.copy_(torch.add(shift, scaled, alpha=1 / self.scale, out=scaled).round_())
        self.values = signed.view(torch.uint8).bitwise_xor_(128)


def _flattened(x: Tensor) -> Tensor:
    """View a dense tensor as one dimension, in memory order."""
    return x.as_strided((x.numel(),), (1,))


class _Int8Product:
    """``x @ weight.T + bias`` on a quantized ``x``."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = None if bias is None else bias.float()
        values, self._scales = _quantize_by_row(weight)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(values, None)

    def __call__(self, x: _QuantizedTensor, dtype: torch.dtype, activation: str = "none") -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x.values, x.scale, x.zero_point, self._packed, self._scales, self._zeros, self.bias,
            1.0, 0, dtype, activation, [], "none",
        )  # fmt: skip


class Int8Linear(nn.Module):
    """``nn.Linear``, ``[..., in] -> [..., out]``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self._product = _Int8Product(layer.weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self._product(_QuantizedTensor(x.contiguous()), x.dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # the bias
        if (weight := state_dict.get(f"{prefix}weight")) is not None:
            self._product = _Int8Product(weight, self.bias)
        elif self.bias is not None:
            self._product.bias = self.bias.float()


class Int8GEGLU(nn.Module):
    """``GEGLU`` as two products of one quantized input, the gate's fused with GELU."""

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        weights, biases = layer.proj.weight.chunk(2), layer.proj.bias.chunk(2)
        self._value, self._gate = map(_Int8Product, weights, biases)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, out_channels]``."""
        quantized = _QuantizedTensor(x.contiguous())
        return self._value(quantized, x.dtype).mul_(self._gate(quantized, x.dtype, "gelu"))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if (bias := state_dict.get(f"{prefix}proj.bias")) is not None:
            self._value.bias, self._gate.bias = bias.float().chunk(2)
        if (weight := state_dict.get(f"{prefix}proj.weight")) is not None:
            biases = (self._value.bias, self._gate.bias)
            self._value, self._gate = map(_Int8Product, weight.chunk(2), biases)


class Int8Conv2d(nn.Module):
    """``nn.Conv2d`` with one group, ``[B, in, H, W] -> [B, out, H', W']``, both channels last.

    The weights are packed at the first call, as in ``PackedConv2d``.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)
        self.bias = None if layer.bias is None else layer.bias.float()
        self._geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), 1)
        self._zeros = torch.zeros(layer.out_channels, dtype=torch.int32)
        self._quantize(layer.weight)

    def _quantize(self, weight: Tensor) -> None:
        values, self._scales = _quantize_by_row(weight)
        self._packed = (torch.Size(), values)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self.bias is not None and (bias := state_dict.get(f"{prefix}bias")) is not None:
            self.bias.copy_(bias)
        if (weight := state_dict.get(f"{prefix}weight")) is not None:
            self._quantize(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        size, weight = self._packed
        if size != x.shape:
            weight = torch.ops.onednn.qconv_prepack(
                weight.to_dense(), self._scales, 1.0, _ZERO_POINT, *self._geometry, list(x.shape)
            )
            self._packed = (x.shape, weight)
        given = _QuantizedTensor(x.contiguous(memory_format=torch.channels_last))
        return torch.ops.onednn.qconv_pointwise(
            given.values, given.scale, given.zero_point, weight, self._scales, self._zeros, self.bias,
            *self._geometry, 1.0, 0, x.dtype, "none", [], "none",
        )  # fmt: skip


def _quantize_by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to -127 to 127 with a scale per row, ``[out, ...] -> [out, ...], [out]``."""
    values, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    rows = max(1, _CHUNK * len(weight) // weight.numel())
    for part, value, scale in zip(
        weight.detach().split(rows), values.split(rows), scales.split(rows), strict=True
    ):
        part = part.float()
        torch.amax(part.flatten(1).abs(), dim=1, out=scale)
        scale.clamp_(min=torch.finfo(torch.float32).tiny).div_(127)
        value.copy_((part / scale.view(-1, *[1] * (part.ndim - 1))).round_())
    return values, scales


def quantize_products(network: nn.Module) -> None:
    """Replace layers of a UNet on a CPU by int8 ones, in place. Inference only afterwards.

    Layers that run once per image or on one row, and the first and last convolution, are not quantized.
    """
    replace_layers(network, _quantized, keep=_UNQUANTIZED)


def _quantized(layer: nn.Module) -> nn.Module | None:
    match layer:
        case GEGLU() if layer.proj.weight.numel() >= SMALLEST:
            return Int8GEGLU(layer)
        case nn.Linear() if layer.weight.numel() >= SMALLEST:
            return Int8Linear(layer)
        case nn.Conv2d() if layer.groups == 1 and layer.weight.numel() >= SMALLEST:
            return Int8Conv2d(layer)
        case _:
            return None


@cache
def _kernels_work() -> bool:
    return kernels_work(Int8GEGLU, Int8Linear, Int8Conv2d, torch.float32)
