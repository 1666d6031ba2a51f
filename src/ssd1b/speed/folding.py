"""Nearest-neighbour doubling and the 3x3 convolution behind it as one 2x2 convolution: 4/9 of the products.

Of the nine values that such a convolution sees, four at most differ, as the others repeat them. Which ones
depends on whether row and column are even or odd. So there are four kernels, 2x2 each, of sums of the 3x3
kernel's taps, and what they give is laid out in turn: in an even row the weights are (w0, w1 + w2), on the
row before and the row itself; in an odd one (w0 + w1, w2), on the row itself and the next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.models.layers import Upsample

_SUMS = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
"""``[even or odd, tap of two, tap of three]``."""


def phase_kernels(weight: Tensor) -> Tensor:
    """The four kernels of a 3x3 one, ``[out, in, 3, 3] -> [4 * out, in, 2, 2]``: even-even, even-odd ..."""
    sums = _SUMS.to(weight.device)
    kernels = torch.einsum("auy, bvx, oiyx -> aboiuv", sums, sums, weight.float())
    return kernels.flatten(0, 2).to(weight.dtype)


def phases(layer: Upsample) -> nn.Conv2d:
    """The convolution that gives all four, ``[B, C, H, W] -> [B, 4 * C, H + 1, W + 1]``."""
    channels = layer.conv.in_channels
    conv = nn.Conv2d(channels, 4 * channels, 2, padding=1, device="meta")
    conv.weight = nn.Parameter(phase_kernels(layer.conv.weight), requires_grad=False)
    assert layer.conv.bias is not None
    conv.bias = nn.Parameter(layer.conv.bias.repeat(4), requires_grad=False)
    return conv


class FoldedUpsample(nn.Module):
    """``Upsample`` by four kernels at once; where a side is not doubled exactly, as it is written.

    ``state_dict`` holds the weights of ``conv`` alone, which the four kernels are sums of.
    """

    def __init__(self, layer: Upsample) -> None:
        super().__init__()
        self.conv = layer.conv
        self.four: nn.Module = phases(layer)
        self.register_state_dict_post_hook(_without_four)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """``[B, C, H, W] -> [B, C, *size]``, as ``Upsample``."""
        height, width = x.shape[-2:]
        if size not in (None, (2 * height, 2 * width)):
            return self.conv(F.interpolate(x, size=size, mode="nearest"))
        four = self.four(x).unflatten(1, (2, 2, -1))
        shape = (len(x), four.shape[3], 2 * height, 2 * width)
        doubled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for row in range(2):
            for column in range(2):
                part = four[:, row, column, :, row : row + height, column : column + width]
                doubled[:, :, row::2, column::2] = part
        return doubled


def _without_four(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}four.")]:
        del state[name]
