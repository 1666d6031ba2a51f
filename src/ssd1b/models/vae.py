"""The autoencoder between pixels and latents, SDXL's AutoencoderKL (Rombach et al. 2022, 2112.10752).

State-dict keys and shapes are those of diffusers' ``AutoencoderKL``.
"""

import itertools
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssd1b.layouts import VAELayout
from ssd1b.models.attention import Attention
from ssd1b.models.layers import Downsample, ResnetBlock, Upsample, silu_
from ssd1b.tensors import Latents, Pixels

EPS = 1e-6


class LatentDistribution(NamedTuple):
    """The encoder's output for an image: a diagonal Gaussian over scaled latents."""

    mean: Latents
    std: Latents


class UndecodableLatents(FloatingPointError):
    """The decoder returned NaN or infinity with float32's range, so the latents are invalid."""


class UnencodablePixels(FloatingPointError):
    """The encoder returned NaN or infinity with float32's range, so pixels or weights are invalid."""


class VAE(nn.Module):
    """Autoencoder between images and latents an eighth as wide and high."""

    def __init__(self, layout: VAELayout) -> None:
        super().__init__()
        self.layout = layout
        self.encoder = Encoder(layout)
        self.decoder = Decoder(layout)
        self.quant_conv = nn.Conv2d(2 * layout.latent_channels, 2 * layout.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(layout.latent_channels, layout.latent_channels, 1)

    def encode(self, pixels: Pixels) -> LatentDistribution:
        """Encode images whose sides are multiples of 8; both results are scaled latents."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        scale = self.layout.scaling_factor
        return LatentDistribution(mean * scale, (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * scale)

    def encode_mean(self, pixels: Pixels, *, tile: int | None = None) -> Latents:
        """Encode images to the means of their distributions, float32; never returns NaN.

        The standard deviation of SDXL's is about a thousandth of the latents', so the mean stands for all.

        Args:
            pixels: images whose sides are multiples of 8, of any float type.
            tile: as for ``decode``; tiles of ``8 * tile`` pixels are encoded one by one.

        Raises:
            UnencodablePixels: the result has NaN or infinity even with float32's range.
        """
        latents = self._encode(pixels, tile)
        dtype = next(self.quant_conv.parameters()).dtype
        if dtype == torch.float16 and not latents.isfinite().all() and pixels.isfinite().all():
            encoding = (self.encoder, self.quant_conv)
            warnings.warn(
                f"the VAE overflowed in {dtype}; encoding again in float32", RuntimeWarning, stacklevel=2
            )
            try:
                for part in encoding:
                    part.float()
                latents = self._encode(pixels, tile)
            finally:
                for part in encoding:
                    part.to(dtype)
        if not latents.isfinite().all():
            raise UnencodablePixels("the picture is encoded to NaN or infinity")
        return latents.float()

    def decode(self, latents: Latents, *, tile: int | None = None) -> Pixels:
        """Decode scaled latents; never returns NaN.

        SDXL's decoder overflows in float16 on some images, and NaN would silently become black. So the result
        is checked; on overflow the latents are decoded again in float32, with a warning.

        Args:
            latents: scaled latents of any float type, converted to the decoder's.
            tile: side in latent cells of tiles that are decoded one by one, for images whose feature maps do
                not fit in memory; None decodes the image at once.

        Raises:
            UndecodableLatents: the result has NaN or infinity even with float32's range, which is bfloat16's.
        """
        pixels = self._decode(latents, tile)
        if pixels.isfinite().all():
            return pixels
        dtype = self.dtype
        if dtype == torch.float16 and latents.isfinite().all():
            warnings.warn(
                f"the VAE overflowed in {dtype}; decoding again in float32", RuntimeWarning, stacklevel=2
            )
            try:
                pixels = self.float()._decode(latents, tile)
            finally:
                self.to(dtype)
        if not pixels.isfinite().all():
            raise UndecodableLatents("the latents decode to NaN or infinity")
        return pixels

    def _encode(self, pixels: Pixels, tile: int | None) -> Latents:
        # Not ``self.dtype``: a backend may have replaced the decoder alone, in another number format.
        pixels = pixels.to(next(self.quant_conv.parameters()))
        height, width = (side // self.layout.factor for side in pixels.shape[-2:])
        if tile is None or max(height, width) <= tile:
            return self.encode(pixels).mean
        return self._encode_tiles(pixels, height, width, tile)

    def _encode_tiles(self, pixels: Tensor, height: int, width: int, tile: int) -> Latents:
        """Encode overlapping tiles and cross-fade their latents linearly over a quarter of their side."""
        factor = self.layout.factor
        latents = pixels.new_zeros(pixels.shape[0], self.layout.latent_channels, height, width)
        weights = pixels.new_zeros(1, 1, height, width)
        for top, left in itertools.product(_tile_starts(height, tile), _tile_starts(width, tile)):
            rows, columns = (slice(start * factor, (start + tile) * factor) for start in (top, left))
            encoded = self.encode(pixels[..., rows, columns]).mean
            fade_y, fade_x = (_fade(side, tile // 4) for side in encoded.shape[-2:])
            fade = (fade_y[:, None] * fade_x).to(encoded)
            latents[..., top : top + tile, left : left + tile] += encoded * fade
            weights[..., top : top + tile, left : left + tile] += fade
        return latents / weights

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the computation."""
        return next(self.post_quant_conv.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the decoder."""
        return next(self.post_quant_conv.parameters()).device

    def _decode(self, latents: Latents, tile: int | None) -> Pixels:
        latents = latents.to(self.dtype) / self.layout.scaling_factor
        if tile is None or max(latents.shape[-2:]) <= tile:
            return self.decoder(self.post_quant_conv(latents))
        return self._decode_tiles(latents, tile)

    def _decode_tiles(self, latents: Tensor, tile: int) -> Pixels:
        """Decode overlapping tiles and cross-fade them linearly over a quarter of their side."""
        factor = self.layout.factor
        height, width = latents.shape[-2:]
        pixels = latents.new_zeros(latents.shape[0], 3, height * factor, width * factor)
        weights = latents.new_zeros(1, 1, height * factor, width * factor)
        for top, left in itertools.product(_tile_starts(height, tile), _tile_starts(width, tile)):
            decoded = self.decoder(self.post_quant_conv(latents[..., top : top + tile, left : left + tile]))
            fade_y, fade_x = (_fade(side, tile * factor // 4) for side in decoded.shape[-2:])
            fade = (fade_y[:, None] * fade_x).to(decoded)
            rows, columns = (slice(start * factor, (start + tile) * factor) for start in (top, left))
            pixels[..., rows, columns] += decoded * fade
            weights[..., rows, columns] += fade
        return pixels / weights


def _tile_starts(length: int, tile: int) -> list[int]:
    """Compute the first cells of the fewest tiles that overlap by at least a quarter and cover the image."""
    stride = tile - tile // 4
    return [*range(0, max(length - tile, 0), stride), max(length - tile, 0)]


def _fade(length: int, ramp: int) -> Tensor:
    """Compute a weight per pixel that rises from the edges over ``ramp`` pixels and is never zero."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).clamp(max=ramp + 1) / (ramp + 1)


class Encoder(nn.Module):
    """Pixels ``[B, 3, H, W]`` to the parameters of a Gaussian ``[B, 2 * latent_channels, H/8, W/8]``."""

    def __init__(self, layout: VAELayout) -> None:
        super().__init__()
        groups, channels = layout.norm_groups, layout.channels
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Stage(
                before,
                after,
                layout.layers_per_block,
                groups,
                None if last else Downsample(after, asymmetric=True),
            )
            for before, after, last in _transitions(channels)
        )
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * layout.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode."""
        x = self.conv_in(pixels)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(silu_(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents ``[B, latent_channels, h, w]`` to pixels ``[B, 3, 8h, 8w]``."""

    def __init__(self, layout: VAELayout) -> None:
        super().__init__()
        groups, channels = layout.norm_groups, layout.channels[::-1]
        self.conv_in = nn.Conv2d(layout.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups)
        self.up_blocks = nn.ModuleList(
            Stage(before, after, layout.layers_per_block + 1, groups, None if last else Upsample(after))
            for before, after, last in _transitions(channels)
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        x = self.mid_block(self.conv_in(latents))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(silu_(self.conv_norm_out(x)))


def _transitions(channels: tuple[int, ...]) -> list[tuple[int, int, bool]]:
    """Return (channels before, channels after, whether it is the last) for each stage."""
    pairs = itertools.pairwise((channels[0], *channels))
    return [(before, after, index == len(channels) - 1) for index, (before, after) in enumerate(pairs)]


class Stage(nn.Module):
    """The residual blocks of one resolution, and a resampler unless it is the last."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        groups: int,
        resample: Downsample | Upsample | None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels, groups=groups, eps=EPS)
            for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([resample]) if isinstance(resample, Downsample) else None
        self.upsamplers = nn.ModuleList([resample]) if isinstance(resample, Upsample) else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the stage."""
        for module in (*self.resnets, *(self.downsamplers or ()), *(self.upsamplers or ())):
            x = module(x)
        return x


class MidBlock(nn.Module):
    """The middle block: residual block, single-head attention over all cells, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2)
        )
        self.attentions = nn.ModuleList([CellAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, C, H, W]``."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class CellAttention(Attention):
    """Single-head self-attention over the cells of a feature map, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, head_dim=channels, qkv_bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """``[B, C, H, W] -> [B, C, H, W]``."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, H*W, C]
        return x + super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])
