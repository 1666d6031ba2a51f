"""Convolutional layers of the UNet and the VAE: residual blocks, resampling, embeddings of numbers.

Attribute names are diffusers', so that published checkpoints load without renaming.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_embedding(values: Tensor, channels: int) -> Tensor:
    """Embed each number as cosines, then sines, of geometrically spaced frequencies.

    Ho et al. 2020 (2006.11239) after Vaswani et al. 2017, cosine first as SDXL was trained.
    Always computed in float32: near timestep 999 bfloat16 has only multiples of 4.

    Args:
        values: any shape ``[...]``.
        channels: even width of the embedding.

    Returns:
        ``[..., channels]``, float32.
    """
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=values.device) * (-math.log(10000.0) / half)
    angles = values.float()[..., None] * exponent.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def guidance_embedding(guidance_scale: Tensor, channels: int) -> Tensor:
    """Embed the guidance scale for an LCM-distilled UNet, ``[B] -> [B, channels]``, float32.

    2310.04378; diffusers' ``get_guidance_scale_embedding``: sines first, frequencies down to 1/10000, and the
    scale minus 1, times 1000.
    """
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=guidance_scale.device) / -(half - 1)
    angles = (guidance_scale.float()[:, None] - 1.0) * 1000.0 * 10000.0**exponent
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two-layer perceptron on an embedded number or vector, ``[B, in] -> [B, out]``."""

    def __init__(self, in_channels: int, out_channels: int, guidance_dim: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        if guidance_dim is not None:
            self.cond_proj = nn.Linear(guidance_dim, in_channels, bias=False)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Embed ``x``; ``guidance`` is LCM's embedded guidance scale (2310.04378, section 4.3)."""
        if guidance is not None:
            x = x + self.cond_proj(guidance)
        return self.linear_2(F.silu(self.linear_1(x)))


def silu_(x: Tensor) -> Tensor:
    """Apply SiLU, in place unless a gradient needs the input.

    A feature map of the VAE takes half a gigabyte at 1024x1024, and its first use as long as the operation.
    """
    return F.silu(x, inplace=not x.requires_grad)


class ResnetBlock(nn.Module):
    """Residual block: twice norm, SiLU and convolution, with the time embedding added in between.

    ``[B, in, H, W] -> [B, out, H, W]``. The VAE's blocks have no time embedding (``time_channels=None``).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if time_channels is not None:
            self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Apply the block; ``embedding`` is ``[B, time_channels]``."""
        h = self.conv1(silu_(self.norm1(x)))
        if embedding is not None:
            h = h + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        h = self.conv2(silu_(self.norm2(h)))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return h + x if h.requires_grad else h.add_(x)


class Downsample(nn.Module):
    """Halving of height and width by a strided convolution.

    The UNet pads one cell on each side; the VAE's encoder (``asymmetric``) only on the right and the bottom.
    """

    def __init__(self, channels: int, *, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, C, H/2, W/2]``, odd sides rounded up (down if asymmetric)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Doubling of height and width by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """``[B, C, H, W] -> [B, C, *size]``; ``size`` matches a skip with an odd side."""
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
