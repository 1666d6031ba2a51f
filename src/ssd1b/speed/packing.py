"""Layers whose weights lie in memory as the processor's kernels want them, put in place of a network's own.

torch calls MKL for float32 products, which on AMD processors is slow with some shapes (docs/log), and
orders the weights of a convolution anew at every call. oneDNN, which every build of torch for x86 carries,
reads weights best in an order of its own. torch's compiler packs them so when it freezes a network; here
that is done alone, through the same operators, without compiling anything.
"""

from functools import cache

import torch
from torch import Tensor, nn

from ssd1b.models.attention import GEGLU
from ssd1b.speed.folding import FoldedUpsample

FORMATS = (torch.float32, torch.bfloat16)
"""That are packed: float16 has no kernels on processors."""

SMALLEST = 2**17
"""Numbers in a matrix below which calling oneDNN costs more than it saves: the miniature's UNet, of matrices
up to 96 x 768, took 1.2 times as long with them packed."""


class _Product:
    """``x @ weight.T + bias``, with what follows it in the same pass."""

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
        self._product = _Product(layer.weight, layer.bias)

    @property
    def bias(self) -> Tensor | None:
        """``[out]``."""
        return self._product.bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self._product(x)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        _save(destination, prefix, self._product.weight, self.bias)


class PackedGEGLU(nn.Module):
    """``GEGLU`` as two products: the gate's with its GELU, the value's with the gate multiplied in."""

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        weights, biases = layer.proj.weight.chunk(2), layer.proj.bias.chunk(2)
        self._value, self._gate = map(_Product, weights, biases)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, out_channels]``."""
        return self._value.times(x, self._gate(x, "gelu"))

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        both = (self._value, self._gate)
        weight = torch.cat([each.weight for each in both])
        bias = torch.cat([each.bias for each in both if each.bias is not None])
        _save(destination, f"{prefix}proj.", weight, bias)


class PackedConv2d(nn.Module):
    """``nn.Conv2d`` of one group, ``[B, in, H, W] -> [B, out, H', W']``, both channels last.

    Its weights are packed when the first map comes, for maps of its size: oneDNN's order depends on it, and
    packed for another size they would be ordered anew at every call, which takes longer than a small
    convolution itself.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.bias = layer.bias
        assert not isinstance(layer.padding, str)
        padding, stride, dilation = map(list, (layer.padding, layer.stride, layer.dilation))
        self._how = (padding, stride, dilation, 1)
        self._packed = (torch.Size(), layer.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        size, weight = self._packed
        if size != x.shape:
            dense = weight.to_dense().contiguous()
            weight = torch.ops.mkldnn._reorder_convolution_weight(dense, *self._how, list(x.shape))
            self._packed = (x.shape, weight)
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self._how, "none", [], "none")

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        _save(destination, prefix, self._packed[1].to_dense(), self.bias)


def _save(destination: dict[str, Tensor], prefix: str, weight: Tensor, bias: Tensor | None) -> None:
    destination[f"{prefix}weight"] = weight
    if bias is not None:
        destination[f"{prefix}bias"] = bias.detach()


def pack(network: nn.Module) -> None:
    """Replace layers by packed ones, in place, one after the other, so that memory holds few of both.

    Inference only afterwards; ``state_dict`` does not change. On other devices than
    CPUs, in other formats than ``FORMATS``, and where torch or the processor lacks the operators, nothing
    changes.

    Args:
        network: with its weights.
    """
    first = next(network.parameters())
    if first.device.type == "cpu" and first.dtype in FORMATS and _works(first.dtype):
        _pack(network)


def _pack(network: nn.Module) -> None:
    for name, child in network.named_children():
        packed = _packed(child)
        if isinstance(network, FoldedUpsample) and name == "conv":
            continue  # of sizes that hardly occur
        if packed is None:
            _pack(child)
        else:
            setattr(network, name, packed.eval())


def _packed(layer: nn.Module) -> nn.Module | None:
    match layer:
        case GEGLU() if _worthwhile(layer.proj):
            return PackedGEGLU(layer)
        case nn.Linear() if _worthwhile(layer):
            return PackedLinear(layer)
        case nn.Conv2d() if layer.groups == 1 and layer.padding_mode == "zeros":
            return PackedConv2d(layer)
    return None


def _worthwhile(layer: nn.Linear) -> bool:
    """Large, and not quantized already."""
    return layer.weight.numel() >= SMALLEST and type(layer.weight) is nn.Parameter


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether the operators, no part of torch's public interface, are there and do what they did."""
    x = torch.linspace(-1, 1, 64, dtype=dtype).view(1, 4, 4, 4)
    with torch.random.fork_rng(devices=[]):  # loading must not disturb the caller's random state
        conv = nn.Conv2d(4, 4, 3, padding=1)
        layers = {PackedGEGLU: GEGLU(4, 4), PackedLinear: nn.Linear(4, 4), PackedConv2d: conv}
    try:
        for packed, layer in layers.items():
            own = layer.to(dtype).requires_grad_(False)
            if not torch.allclose(packed(own)(x), own(x), rtol=0.05, atol=0.05):
                return False
    except (AttributeError, RuntimeError):
        return False
    return True
