"""How the hires fix enlarges an image between its passes, in the spelling of AUTOMATIC1111; no torch.

Latent modes enlarge the latents. The others decode the first image, enlarge its pixels, and encode them.
Sources are ``latent_upscale_modes`` of ``modules/shared_items.py`` and ``modules/upscaler.py`` of version
1.10; ``area`` is ComfyUI's (``nodes.LatentUpscale``).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ssd1b.errors import unknown


class Upscaler(NamedTuple):
    """A way of enlarging.

    Attributes:
        mode: interpolation of ``torch.nn.functional.interpolate`` for latents, or of Pillow for pixels.
        latent: enlarges latents.
        antialias: of latents.
        a1111: AUTOMATIC1111's name; None if it has none.
    """

    mode: str
    latent: bool
    antialias: bool = False
    a1111: str | None = None


UPSCALERS: Mapping[str, Upscaler] = MappingProxyType({
    "lanczos": Upscaler("lanczos", latent=False, a1111="Lanczos"),
    "bicubic": Upscaler("bicubic", latent=False),
    "nearest": Upscaler("nearest", latent=False, a1111="Nearest"),
    "latent": Upscaler("bilinear", latent=True, a1111="Latent"),
    "latent-antialiased": Upscaler("bilinear", True, antialias=True, a1111="Latent (antialiased)"),
    "latent-bicubic": Upscaler("bicubic", True, a1111="Latent (bicubic)"),
    "latent-bicubic-antialiased": Upscaler(
        "bicubic", True, antialias=True, a1111="Latent (bicubic antialiased)"
    ),
    "latent-nearest": Upscaler("nearest", True, a1111="Latent (nearest)"),
    "latent-nearest-exact": Upscaler("nearest-exact", True, a1111="Latent (nearest-exact)"),
    "latent-area": Upscaler("area", True),
})  # fmt: skip

DEFAULT_UPSCALER = "lanczos"
"""Of pixels, because enlarged latents decode to a blurred image unless the second pass is strong."""

A1111_UPSCALER = "latent"
"""What AUTOMATIC1111 uses if its text names none."""


def _key(name: str) -> str:
    return re.sub(r"[\s()_-]+", "", name).lower()


_NAMES = {_key(each): name for name, found in UPSCALERS.items() for each in (name, found.a1111 or name)}
_NAMES["latentbilinear"] = "latent"


def resolve_upscaler(name: str) -> str:
    """Find the canonical name of an upscaler ("Latent (bicubic)" -> latent-bicubic).

    Raises:
        InputError: the name is unknown. Networks such as ESRGAN are not available.
    """
    if _key(name) not in _NAMES:
        raise unknown("upscaler", name, UPSCALERS)
    return _NAMES[_key(name)]
