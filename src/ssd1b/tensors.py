"""Array types at public boundaries, with axes, value space and range.

Axes: ``batch`` images; ``tokens`` = 77 x the number of prompt chunks; ``height`` and ``width`` in pixels;
``cells_high`` and ``cells_wide`` in latent cells, an eighth of that.

The shapes are checked at run time in the tests only (``--jaxtyping-packages``).
"""

from typing import TypeAlias

from jaxtyping import Float, Int, UInt8
from torch import Tensor

Latents: TypeAlias = Float[Tensor, "batch 4 cells_high cells_wide"]
"""Scaled latents (VAE latents x scaling factor, unit variance); noisy latents are ``x0 + sigma * noise``."""

UNetLatents: TypeAlias = Float[Tensor, "batch in_channels cells_high cells_wide"]
"""Input of a UNet: ``Latents``, and for inpainting mask and masked picture after them (9 channels)."""

Pixels: TypeAlias = Float[Tensor, "batch 3 height width"]
"""RGB in [-1, 1]."""

Levels: TypeAlias = Float[Tensor, "batch 3 height width"]
"""RGB in [0, 1]."""

TokenIds: TypeAlias = Int[Tensor, "batch tokens"]
"""Token ids; each chunk of 77 has its own begin and end token."""

PromptEmbeds: TypeAlias = Float[Tensor, "batch tokens channels"]
"""Penultimate hidden states of both text encoders, concatenated over channels (2048 in SDXL)."""

PooledEmbeds: TypeAlias = Float[Tensor, "batch pooled"]
"""Projected end-of-text state of the second text encoder (1280 in SDXL)."""

TimeIds: TypeAlias = Float[Tensor, "batch 6"]
"""Micro-conditioning in pixels: original height, width; crop top, left; target height, width."""

Timesteps: TypeAlias = Float[Tensor, "batch"]
"""Diffusion times in [0, 999], not necessarily whole."""


def from_levels(levels: UInt8[Tensor, "batch 3 height width"]) -> Pixels:
    """Scale 8-bit levels from [0, 255] to [-1, 1], in float32."""
    return levels.float() / 127.5 - 1
