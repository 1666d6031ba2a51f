"""Int8 products and convolutions on CPUs, by oneDNN's kernels, with dynamically quantized activations.

Weights are -127 to 127 with a scale for each output channel. Activations are 0 to 255 with one scale and one
zero point, from the range of the tensor at hand, so that nothing has to be calibrated. With VNNI they
take half the time of bfloat16's (docs/log); finding the range and rounding are a twentieth of it.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

from ssd1b.models.attention import GEGLU
from ssd1b.runtime import cpu_multiplies_int8
from ssd1b.speed.folding import FoldedUpsample

SMALLEST = 2**14
"""Numbers in a matrix or kernel below which rounding what it multiplies costs more than it saves."""

_KEPT = ("conv_in", "conv_out", "time_embedding", "add_embedding", "time_emb_proj", "to_k", "to_v")
"""The first and the last convolution, which have few channels and whose errors are seen; what is computed for
one row of numbers; keys and values of the text, computed once a picture (``fuse`` has joined those of
self-attention)."""

_ZERO = 128
"""What stands for zero while weights are packed; another may stand for it when they multiply, but 0 itself,
for which they would be packed otherwise."""

_ROOM = 2**20
"""Numbers that are rounded at a time: what they become on the way stays in the cache."""


def int8_is_fast() -> bool:
    """Whether the processor has int8 instructions (VNNI), and torch the operators that use them."""
    return cpu_multiplies_int8() and _works()


class _Quantized:
    """A tensor quantized to 1 to 255.

    Args:
        x: whose numbers lie side by side in memory, in any order.
    """

    __slots__ = ("numbers", "scale", "zero")

    def __init__(self, x: Tensor) -> None:
        flat = _in_line(x)  # torch would copy what is channels last to look for its range
        low, high = (float(each) for each in torch.aminmax(flat))
        low, high = min(low, 0.0), max(high, 0.0)  # zero is exact: convolutions pad with it
        # 253 steps, so that a zero that is rounded up leaves the greatest within 255.
        self.scale = max((high - low) / 253, torch.finfo(torch.float32).tiny)
        self.zero = 1 + round(-low / self.scale) if math.isfinite(self.scale) else _ZERO
        # From -127 to 127, whose conversion torch has vectorised; the highest bit makes that 1 to 255.
        whole = torch.empty_like(x, dtype=torch.int8)
        room, shift = torch.empty(min(_ROOM, x.numel())), torch.tensor(float(self.zero - 128))
        for part, out in zip(flat.split(_ROOM), _in_line(whole).split(_ROOM), strict=True):
            scaled = room[: len(part)].copy_(part)
            out.copy_(torch.add(shift, scaled, alpha=1 / self.scale, out=scaled).round_())
        self.numbers = whole.view(torch.uint8).bitwise_xor_(128)


def _in_line(x: Tensor) -> Tensor:
    """All numbers, in the order they have in memory."""
    return x.as_strided((x.numel(),), (1,))


class _Product:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = None if bias is None else bias.float()
        numbers, self._scales = _whole(weight)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(numbers, None)

    def __call__(self, x: _Quantized, dtype: torch.dtype, activation: str = "none") -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x.numbers, x.scale, x.zero, self._packed, self._scales, self._zeros, self.bias,
            1.0, 0, dtype, activation, [], "none",
        )  # fmt: skip


class Int8Linear(nn.Module):
    """``nn.Linear``, ``[..., in] -> [..., out]``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self._product = _Product(layer.weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self._product(_Quantized(x.contiguous()), x.dtype)


class Int8GEGLU(nn.Module):
    """``GEGLU`` as two products of the same numbers, the gate's with its GELU."""

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        weights, biases = layer.proj.weight.chunk(2), layer.proj.bias.chunk(2)
        self._value, self._gate = map(_Product, weights, biases)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, out_channels]``."""
        rounded = _Quantized(x.contiguous())
        return self._value(rounded, x.dtype).mul_(self._gate(rounded, x.dtype, "gelu"))


class Int8Conv2d(nn.Module):
    """``nn.Conv2d`` of one group, ``[B, in, H, W] -> [B, out, H', W']``, both channels last.

    Its weights are packed when the first map comes, as those of ``PackedConv2d`` are.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)
        self.bias = None if layer.bias is None else layer.bias.float()
        self._how = (list(layer.stride), list(layer.padding), list(layer.dilation), 1)
        numbers, self._scales = _whole(layer.weight)
        self._zeros = torch.zeros(layer.out_channels, dtype=torch.int32)
        self._packed = (torch.Size(), numbers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        size, weight = self._packed
        if size != x.shape:
            weight = torch.ops.onednn.qconv_prepack(
                weight.to_dense(), self._scales, 1.0, _ZERO, *self._how, list(x.shape)
            )
            self._packed = (x.shape, weight)
        rounded = _Quantized(x.contiguous(memory_format=torch.channels_last))
        return torch.ops.onednn.qconv_pointwise(
            rounded.numbers, rounded.scale, rounded.zero, weight, self._scales, self._zeros, self.bias,
            *self._how, 1.0, 0, x.dtype, "none", [], "none",
        )  # fmt: skip


def _whole(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers from -127 to 127 and a scale for each row, ``[out, ...] -> [out, ...], [out]``."""
    weight = weight.detach().float().contiguous()
    scales = weight.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    by_row = scales.view(-1, *[1] * (weight.ndim - 1))
    return (weight / by_row).round_().to(torch.int8), scales


def quantize_products(network: nn.Module) -> None:
    """Replace a UNet's layers by int8 ones, in place, one after the other. Inference only afterwards.

    Layers that run once a picture or on one row of numbers, and the first and last convolution, are kept.

    Args:
        network: with its weights, on a CPU.
    """
    for name, child in list(network.named_children()):
        if name in _KEPT or (isinstance(network, FoldedUpsample) and name == "conv"):
            continue
        rounded = _rounded(child)
        if rounded is None:
            quantize_products(child)
        else:
            setattr(network, name, rounded.eval())


def _rounded(layer: nn.Module) -> nn.Module | None:
    match layer:
        case GEGLU() if layer.proj.weight.numel() >= SMALLEST:
            return Int8GEGLU(layer)
        case nn.Linear() if layer.weight.numel() >= SMALLEST:
            return Int8Linear(layer)
        case nn.Conv2d() if layer.groups == 1 and layer.weight.numel() >= SMALLEST:
            return Int8Conv2d(layer)
    return None


@cache
def _works() -> bool:
    """Whether the operators, no part of torch's public interface, are there and do what they did."""
    x = torch.linspace(-1, 2, 128).view(2, 4, 4, 4)
    with torch.random.fork_rng(devices=[]):  # loading must not disturb the caller's random state
        conv = nn.Conv2d(4, 4, 3, padding=1)
        layers = {Int8GEGLU: GEGLU(4, 4), Int8Linear: nn.Linear(4, 4), Int8Conv2d: conv}
    try:
        for rounded, layer in layers.items():
            own = layer.requires_grad_(False)
            eight = rounded(own)
            for given in (x, x[:1]):  # a convolution is packed anew for the second
                if not torch.allclose(eight(given), own(given), rtol=0.05, atol=0.05):
                    return False
    except (AttributeError, RuntimeError):
        return False
    return True
