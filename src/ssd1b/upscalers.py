"""How images are enlarged, in the spelling of AUTOMATIC1111, or by the file of a network; no torch.

Between the passes of the hires fix, latent modes enlarge the latents. The others decode the first image,
enlarge its pixels, and encode them, and so do networks such as ESRGAN (``enlarging``).
Sources are ``latent_upscale_modes`` of ``modules/shared_items.py`` and ``modules/upscaler.py`` of version
1.10; ``area`` is ComfyUI's (``nodes.LatentUpscale``).
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ssd1b.errors import InputError, NotFoundError, unknown
from ssd1b.files import read_shapes
from ssd1b.inputs import InputFile


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

PIXEL_UPSCALERS = tuple(name for name, each in UPSCALERS.items() if not each.latent)
"""Those that enlarge pixels."""

MAX_BYTES = 4 * 2**30
"""Maximum size of a network's file; the largest published ones have 0.6 GB."""

DEFAULT_UPSCALER = "lanczos"
"""Of pixels, because enlarged latents decode to a blurred image unless the second pass is strong."""

A1111_UPSCALER = "latent"
"""What AUTOMATIC1111 uses if its text names none."""


def _key(name: str) -> str:
    return re.sub(r"[\s()_-]+", "", name).lower()


_NAMES = {_key(each): name for name, found in UPSCALERS.items() for each in (name, found.a1111 or name)}
_NAMES["latentbilinear"] = "latent"


def resolve_upscaler(name: str, allowed: Collection[str] = UPSCALERS, files: Collection[str] = ()) -> str:
    """Find the canonical name of an upscaler ("Latent (bicubic)" -> latent-bicubic).

    Args:
        name: in any spelling.
        allowed: ``UPSCALERS`` or ``PIXEL_UPSCALERS``.
        files: what else is allowed, for the error.

    Raises:
        InputError: the name is unknown, or not allowed.
    """
    found = _NAMES.get(_key(name))
    if found is None or found not in allowed:
        raise unknown("upscaler" if found is None else "upscaler of pixels", name, [*allowed, *files])
    return found


def is_upscaler(name: str) -> bool:
    """Whether a name is that of an upscaler without a network."""
    return _key(name) in _NAMES


def find_upscaler(text: str, allowed: Collection[str] = UPSCALERS) -> str | InputFile:
    """Find an upscaler: the canonical name of one, or the file of a network.

    Args:
        text: name or path.
        allowed: as for ``resolve_upscaler``.

    Raises:
        NotFoundError: there is no such file.
        InputError: the name is unknown, or the file is not safetensors.
    """
    is_path = os.path.basename(text) != text or Path(text).suffix or os.path.lexists(text)
    if is_path and not is_upscaler(text):
        return identify_network(text)
    return resolve_upscaler(text, allowed, ["a .safetensors file"])


def identify_network(path: str | Path) -> InputFile:
    """Identify the file of a network that enlarges images; its header is read.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is not safetensors; the message says how to convert a pickle.
    """
    file = InputFile.of(path, most=MAX_BYTES)
    try:
        read_shapes(file.path)
    except NotFoundError:
        raise
    except InputError as error:
        raise InputError(f"{error}{_CONVERT if Path(path).suffix in _PICKLES else ''}") from None
    return file


def upscaler_label(upscaler: str | InputFile) -> str:
    """Return what AUTOMATIC1111 calls an upscaler; a network is called like its file, without suffix."""
    if isinstance(upscaler, InputFile):
        return Path(upscaler.path).stem
    return UPSCALERS[upscaler].a1111 or upscaler


_PICKLES = (".pth", ".pt", ".ckpt", ".bin")

_CONVERT = (
    '. Convert it: python -c "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], '
    "'cpu', weights_only=True); s.save_file(d.get('params_ema', d.get('params', d)), sys.argv[2])\" "
    "FILE.pth FILE.safetensors"
)
"""The names are those under which ESRGAN's training code stores the weights."""
