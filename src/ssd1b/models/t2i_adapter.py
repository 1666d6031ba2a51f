"""T2I-Adapter for SDXL: a small network that turns a picture into features for each level of a UNet.

Mou et al. 2023 (2302.08453). It sees neither noise nor text, so it runs once for all steps.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssd1b.layouts import T2IAdapterLayout


class AdapterResnet(nn.Module):
    """Residual block of two convolutions, ``[B, C, H, W] -> [B, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.block2(F.relu(self.block1(x)))


class AdapterBlock(nn.Module):
    """Residual blocks at one level."""

    def __init__(self, before: int, channels: int, depth: int) -> None:
        super().__init__()
        self.in_conv = nn.Conv2d(before, channels, 1) if before != channels else None
        self.resnets = nn.ModuleList(AdapterResnet(channels) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks."""
        x = x if self.in_conv is None else self.in_conv(x)
        for block in self.resnets:
            x = block(x)
        return x


class FullAdapterXL(nn.Module):
    """The network itself; only the third block halves the resolution."""

    def __init__(self, layout: T2IAdapterLayout) -> None:
        super().__init__()
        self.factor = layout.factor
        widths = layout.channels
        self.conv_in = nn.Conv2d(layout.picture_channels * layout.factor**2, widths[0], 3, padding=1)
        befores = (widths[0], *widths[:-1])
        self.body = nn.ModuleList(
            AdapterBlock(before, width, layout.depth) for before, width in zip(befores, widths, strict=True)
        )

    def forward(self, picture: Float[Tensor, "batch picture_channels height width"]) -> list[Tensor]:
        """``[B, 1 or 3, H, W]`` in [0, 1] -> ``[B, C, H/16, W/16]`` for each block; H/32 from the third."""
        x, features = self.conv_in(F.pixel_unshuffle(picture, self.factor)), []
        for index, block in enumerate(self.body):
            if index == 2:
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            x = block(x)
            features.append(x)
        return features


class T2IAdapter(nn.Module):
    """State-dict keys and shapes are those of diffusers' ``T2IAdapter`` of type ``full_adapter_xl``."""

    def __init__(self, layout: T2IAdapterLayout) -> None:
        super().__init__()
        self.layout = layout
        self.adapter = FullAdapterXL(layout)

    def forward(self, picture: Float[Tensor, "batch picture_channels height width"]) -> list[Tensor]:
        """See ``FullAdapterXL.forward``."""
        return self.adapter(picture)
