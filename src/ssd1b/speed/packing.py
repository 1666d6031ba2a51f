"""Linear layers and convolutions with weights packed for oneDNN's kernels.

For float32 products torch calls MKL, which is slow for some shapes on AMD processors (docs/log), and it
reorders the weights of a convolution at every call. oneDNN, which is part of every build of torch for x86,
has its own memory layout for weights. torch's compiler packs weights this way when it freezes a network; this
module does only that, through the same operators, without compiling.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.models.attention import GEGLU
from ssd1b.speed.replacement import kernels_work, replace_layers

PACKED_DTYPES = (torch.float32, torch.bfloat16)
"""Number formats with packed kernels on CPUs; float16 has none."""

SMALLEST = 2**17
"""Elements of the smallest matrix worth packing: below, calling oneDNN costs more than it saves. The
miniature's UNet, with matrices up to 96 x 768, took 1.2 times as long with them packed."""


class _PackedProduct:
    """``x @ weight.T + bias`` fused with the operation that follows it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    @property
    def weight(self) -> Tensor:
        return self._packed.to_dense()

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, activation, [], "none")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self._packed, self.bias, "mul")


class PackedLinear(nn.Module):
    """``nn.Linear``, ``[..., in] -> [..., out]``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._product = _PackedProduct(layer.weight, layer.bias)

    @property
    def bias(self) -> Tensor | None:
        """``[out]``."""
        return self._product.bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self._product(x)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        _save(destination, prefix, self._product.weight, self.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        bias = state_dict.get(f"{prefix}bias", self.bias)
        if (weight := state_dict.get(f"{prefix}weight")) is not None:
            self._product = _PackedProduct(weight, bias)
        self._product.bias = bias


class PackedGEGLU(nn.Module):
    """``GEGLU`` as two fused products: the gate's with GELU, the value's with multiplication by the gate."""

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        weights, biases = layer.proj.weight.chunk(2), layer.proj.bias.chunk(2)
        self._value, self._gate = map(_PackedProduct, weights, biases)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, out_channels]``."""
        return self._value.times(x, self._gate(x, "gelu"))

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        both = (self._value, self._gate)
        weight = torch.cat([each.weight for each in both])
        bias = torch.cat([each.bias for each in both if each.bias is not None])
        _save(destination, f"{prefix}proj.", weight, bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if (bias := state_dict.get(f"{prefix}proj.bias")) is not None:
            self._value.bias, self._gate.bias = bias.chunk(2)
        if (weight := state_dict.get(f"{prefix}proj.weight")) is not None:
            biases = (self._value.bias, self._gate.bias)
            self._value, self._gate = map(_PackedProduct, weight.chunk(2), biases)


class PackedConv2d(nn.Module):
    """``nn.Conv2d`` with one group, ``[B, in, H, W] -> [B, out, H', W']``, both channels last.

    The weights are packed at the first call, for the size of its input: oneDNN's layout depends on the size,
    and with another one it would reorder the weights at every call, which takes longer than a small
    convolution.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.bias = layer.bias
        assert not isinstance(layer.padding, str)
        padding, stride, dilation = map(list, (layer.padding, layer.stride, layer.dilation))
        self._geometry = (padding, stride, dilation, 1)
        self._packed = (torch.Size(), layer.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        size, weight = self._packed
        if size != x.shape:
            dense = weight.to_dense().contiguous()
            weight = torch.ops.mkldnn._reorder_convolution_weight(dense, *self._geometry, list(x.shape))
            self._packed = (x.shape, weight)
        x = x.contiguous(memory_format=torch.channels_last)
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x, weight, self.bias, *self._geometry, "none", [], "none")

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        _save(destination, prefix, self._packed[1].to_dense(), self.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # the bias
        if (weight := state_dict.get(f"{prefix}weight")) is not None:
            self._packed = (torch.Size(), weight.clone())


def _save(destination: dict[str, Tensor], prefix: str, weight: Tensor, bias: Tensor | None) -> None:
    destination[f"{prefix}weight"] = weight
    if bias is not None:
        destination[f"{prefix}bias"] = bias.detach()


def pack(network: nn.Module) -> None:
    """Replace layers by packed ones, in place. Inference only afterwards; ``state_dict`` does not change.

    Does nothing on devices other than CPUs, in dtypes other than ``PACKED_DTYPES``, and if torch or the
    processor lacks the operators.
    """
    first = next(network.parameters())
    if first.device.type == "cpu" and first.dtype in PACKED_DTYPES and packing_works(first.dtype):
        replace_layers(network, _packed)


def _packed(layer: nn.Module) -> nn.Module | None:
    match layer:
        case GEGLU() if _worthwhile(layer.proj):
            return PackedGEGLU(layer)
        case nn.Linear() if _worthwhile(layer):
            return PackedLinear(layer)
        case nn.Conv2d() if layer.groups == 1 and layer.padding_mode == "zeros":
            return PackedConv2d(layer)
        case _:
            return None


def _worthwhile(layer: nn.Module) -> bool:
    """Whether a layer is a large linear layer that is not quantized."""
    large = isinstance(layer, nn.Linear) and layer.weight.numel() >= SMALLEST
    return large and type(layer.weight) is nn.Parameter


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether torch and the processor have working operators for packed weights."""
    return kernels_work(PackedGEGLU, PackedLinear, PackedConv2d, dtype)
