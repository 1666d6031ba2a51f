"""Nearest-neighbour upsampling and the 3x3 convolution after it as one 2x2 convolution: 4/9 of the products.

Of the nine values that such a convolution reads, at most four are distinct. Which ones depends on whether row
and column are even or odd, so there are four 2x2 kernels, whose weights are sums of the 3x3 kernel's, and
their outputs are interleaved. For even rows the weights are (w0, w1 + w2), on the previous row and the same
row; for odd rows (w0 + w1, w2), on the same row and the next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.models.layers import Upsample

_SUMS = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
"""Which of the three weights each of the two is the sum of: ``[even or odd, two, three]``."""


def phase_kernels(weight: Tensor) -> Tensor:
    """Make the four 2x2 kernels, ``[out, in, 3, 3] -> [4 * out, in, 2, 2]``: even-even, even-odd ..."""
    sums = _SUMS.to(weight.device)
    kernels = torch.einsum("auy, bvx, oiyx -> aboiuv", sums, sums, weight.float())
    return kernels.flatten(0, 2).to(weight.dtype)


def phase_convolution(layer: Upsample) -> nn.Conv2d:
    """Make the convolution with all four kernels, ``[B, C, H, W] -> [B, 4 * C, H + 1, W + 1]``."""
    channels = layer.conv.in_channels
    conv = nn.Conv2d(channels, 4 * channels, 2, padding=1, device="meta")
    conv.weight = nn.Parameter(phase_kernels(layer.conv.weight), requires_grad=False)
    assert layer.conv.bias is not None
    conv.bias = nn.Parameter(layer.conv.bias.repeat(4), requires_grad=False)
    return conv


class FoldedUpsample(nn.Module):
    """``Upsample`` with four kernels at once, except for sizes that are not exactly twice the input's.

    ``state_dict`` contains only the weights of ``conv``, from which the four kernels are computed.
    """

    def __init__(self, layer: Upsample) -> None:
        super().__init__()
        self.conv = layer.conv
        self.phases: nn.Module = phase_convolution(layer)
        self.register_state_dict_post_hook(_without_phases)
        self.register_load_state_dict_pre_hook(_with_phases)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """``[B, C, H, W] -> [B, C, *size]``, as ``Upsample``."""
        height, width = x.shape[-2:]
        if size not in (None, (2 * height, 2 * width)):
            return self.conv(F.interpolate(x, size=size, mode="nearest"))
        phases = self.phases(x).unflatten(1, (2, 2, -1))
        shape = (len(x), phases.shape[3], 2 * height, 2 * width)
        doubled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for row in range(2):
            for column in range(2):
                phase = phases[:, row, column, :, row : row + height, column : column + width]
                doubled[:, :, row::2, column::2] = phase
        return doubled


def _with_phases(module: nn.Module, state: dict[str, Tensor], prefix: str, *others: object) -> None:
    if (weight := state.get(f"{prefix}conv.weight")) is not None:
        state[f"{prefix}phases.weight"] = phase_kernels(weight)
    if (bias := state.get(f"{prefix}conv.bias")) is not None:
        state[f"{prefix}phases.bias"] = bias.repeat(4)


def _without_phases(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}phases.")]:
        del state[name]
