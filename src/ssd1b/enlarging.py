"""Upscale images by interpolation, or with models such as ESRGAN in tiles.

``spandrel`` (MIT) builds the models: ESRGAN, Real-ESRGAN, SwinIR, DAT, SPAN and some forty others. It
recognises them by the names and shapes of their tensors.
"""

import math
import re
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ssd1b.errors import FailedError, InputError
from ssd1b.extras import require
from ssd1b.files import named, reason
from ssd1b.inputs import InputFile
from ssd1b.numerals import byte_size
from ssd1b.upscalers import MAX_BYTES, UPSCALERS
from ssd1b.weights.files import read_header, read_tensors

TILE = 256
"""Side in pixels of the parts of an image that a network reads at once, by default."""

SMALLEST_TILE, LARGEST_TILE = 64, 4096

OVERLAP = 32
"""Pixels that neighbouring tiles have in common. In the middle of them, one tile fades into the other."""

MOST_PIXELS = 2**28
"""Maximum area of an enlarged image, 16384x16384: 0.8 GB in memory."""

_FADE = 8
"""Pixels over which one tile fades into the next. What lies beyond, at a tile's edge, is not used."""

_MOST_LAYERS = 1000
"""Highest number in a name of a tensor. The number of layers is derived from it, before there are any."""

_NUMBER = re.compile(r"\d+")


class Network(NamedTuple):
    """A network that enlarges images, or restores them at their size.

    Attributes:
        run: enlarges ``[1, C, H, W]`` to ``[1, C, scale * H, scale * W]``, values from 0 to 1.
        scale: factor by which it enlarges.
        channels: that it takes: 3, or 1 for one colour at a time.
        whole: it divides images itself.
        device: where it runs.
        dtype: its number format.
        architecture: spandrel's name of it, such as "ESRGAN".
    """

    run: Callable[[Tensor], Tensor]
    scale: int
    channels: int
    whole: bool
    device: torch.device
    dtype: torch.dtype
    architecture: str = "unknown"


@lru_cache(maxsize=1)
def load_network(file: InputFile, device: torch.device) -> Network:
    """Load a network; the last one stays in memory.

    It computes in float16 on a GPU of CUDA, if it can, and otherwise in float32: in bfloat16, pixels have
    errors of a level or more.

    Args:
        file: a safetensors file.
        device: where it will run.

    Raises:
        InputError: the file is gone, has changed, or has no network that enlarges images; or spandrel is not
            installed.
    """
    require("an upscaling network", "spandrel")
    path = file.verified(most=MAX_BYTES)
    for name in read_header(path).tensors:
        if any(len(digits) > 4 or int(digits) > _MOST_LAYERS for digits in _NUMBER.findall(name)):
            raise InputError(f"{named(path)}: {named(name)}: an upscaling network has fewer layers")
    spandrel = import_spandrel()
    try:
        found = spandrel.ModelLoader().load_from_state_dict(read_tensors(path))
    except spandrel.UnsupportedModelError:
        raise InputError(f"{named(path)}: not an upscaling network that spandrel knows") from None
    except InputError:
        raise
    except Exception as error:  # of any kind: spandrel assumes intact files
        raise InputError(f"{named(path)}: a damaged upscaling network: {reason(error)}") from None
    purpose = getattr(found, "purpose", "")
    if purpose not in ("SR", "Restoration"):
        raise InputError(
            f"{named(path)}: {found.architecture.name}, which is for {purpose}, not for upscaling"
        )
    channels = found.input_channels
    if channels not in (1, 3) or found.output_channels != channels:
        raise InputError(f"{named(path)}: it takes {channels} channels: allowed are 3 and 1")
    dtype = torch.float16 if found.supports_half and device.type == "cuda" else torch.float32
    found.to(device, dtype).eval()
    whole = found.tiling == spandrel.ModelTiling.INTERNAL
    return Network(found, found.scale, channels, whole, device, dtype, found.architecture.name)


def import_spandrel() -> Any:
    """Import spandrel, also where torchvision cannot be imported."""
    with _torchvision():
        import spandrel
    return spandrel


@contextmanager
def _torchvision() -> Generator[None, None, None]:
    """Let spandrel be imported where torchvision is missing, or was built for another torch and fails.

    spandrel needs it for two networks, neither of which enlarges images.
    """
    names = ["torchvision", "torchvision.transforms", "torchvision.transforms.functional"]
    try:
        import torchvision.transforms.functional  # pyright: ignore[reportMissingImports]  # noqa: F401

        names = []
    except (ImportError, RuntimeError):
        for name in names:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__getattr__ = lambda _: None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


class Plan(NamedTuple):
    """How an image is enlarged by a network: how often that is run, and on how many tiles in all."""

    runs: int
    tiles: int


def plan(size: tuple[int, int], wanted: tuple[int, int], network: Network, tile: int = TILE) -> Plan:
    """Plan the enlargement of an image: the network is run until the image is as large as it has to be.

    Args:
        size: width and height of the image.
        wanted: those that it is to have.
        network: that enlarges it.
        tile: see ``TILE``.

    Raises:
        InputError: an image on the way has more than ``MOST_PIXELS``.
    """
    (width, height), scale, runs, tiles = size, network.scale, 0, 0
    while runs == 0 or (scale > 1 and (width < wanted[0] or height < wanted[1])):
        tiles += math.prod(len(_windows(side, network, tile)) for side in (width, height))
        width, height, runs = width * scale, height * scale, runs + 1
        check_area((width, height))
    return Plan(runs, tiles)


def check_area(size: tuple[int, int]) -> None:
    """Check the size of an enlarged image.

    Raises:
        InputError: it has more than ``MOST_PIXELS``.
    """
    if math.prod(size) > MOST_PIXELS:
        raise InputError(
            f"the enlarged image would have {size[0]}x{size[1]} pixels, {byte_size(3 * math.prod(size))}: at "
            f"most {MOST_PIXELS} are allowed, as in 16384x16384"
        )


def enlarge(
    image: Image.Image,
    size: tuple[int, int],
    upscaler: str | Network,
    *,
    tile: int = TILE,
    watch: Callable[[int], object] = lambda tiles: None,
) -> Image.Image:
    """Enlarge an image.

    A network that enlarges less than is wanted is run again, and the result is scaled down to the size
    (Lanczos). Transparency is always interpolated.

    Args:
        image: RGB or RGBA.
        size: width and height of the result.
        upscaler: a name of ``upscalers.PIXEL_UPSCALERS``, or a network.
        tile: side in pixels of the parts that the network reads at once, ``SMALLEST_TILE`` or more.
        watch: called with 1 after each tile.

    Raises:
        InputError: the image becomes too large.
        FailedError: the network computes NaN or infinity.
    """
    check_area(size)
    if isinstance(upscaler, str):
        return image.resize(size, Image.Resampling[UPSCALERS[upscaler].mode.upper()])
    colours = image.convert("RGB")
    for _ in range(plan(image.size, size, upscaler, tile).runs):
        colours = _run(colours, upscaler, tile, watch)
    colours = colours.resize(size, Image.Resampling.LANCZOS)  # a copy, if it has the size
    if image.mode == "RGBA":
        colours.putalpha(image.getchannel("A").resize(size, Image.Resampling.LANCZOS))
    return colours


def _run(image: Image.Image, network: Network, tile: int, watch: Callable[[int], object]) -> Image.Image:
    scale = network.scale
    result = np.empty((image.height * scale, image.width * scale, 3), np.uint8)
    row = 0
    for band in _bands(torch.from_numpy(np.array(image)), network, tile, watch):
        levels = (band * 255).round_().to(torch.uint8).permute(1, 2, 0)
        result[row : row + len(levels)] = levels.cpu().numpy()
        row += len(levels)
    return Image.fromarray(result)


@torch.inference_mode()
def _bands(
    levels: Tensor, network: Network, tile: int, watch: Callable[[int], object]
) -> Iterator[Float[Tensor, "3 rows columns"]]:
    """Enlarge ``levels [H, W, 3]`` from top to bottom; only one row of tiles is in memory as numbers."""
    (height, width), scale = levels.shape[:2], network.scale
    rows, columns = (_windows(side, network, tile) for side in (height, width))
    above: Tensor | None = None
    for index, row in enumerate(rows):
        band = torch.zeros(3, (row.end - row.start) * scale, width * scale, device=network.device)
        for column in columns:
            part = levels[row.start : row.end, column.start : column.end]
            place = slice(column.start * scale, column.end * scale)
            band[:, :, place] += _call(network, part) * column.weights(scale, network.device)
            watch(1)
        band *= row.weights(scale, network.device)[:, None]
        if above is not None:
            band[:, : above.shape[1]] += above
        end = rows[index + 1].start if index + 1 < len(rows) else height
        finished = (end - row.start) * scale
        yield band[:, :finished]
        above = band[:, finished:]


def _call(network: Network, levels: Tensor) -> Tensor:
    """Enlarge a tile, ``[H, W, 3]`` of 0 to 255 to ``[3, scale * H, scale * W]`` of 0 to 1."""
    pixels = levels.permute(2, 0, 1)[None].to(network.device, network.dtype) / 255
    found = torch.cat([network.run(each) for each in pixels.split(network.channels, dim=1)], dim=1)[0].float()
    if not torch.isfinite(found).all():
        raise FailedError("the upscaling network computes NaN or infinity: its weights are damaged")
    return found


class _Window(NamedTuple):
    """A part of a side of an image; ``before`` and ``after`` are where it fades from and into others."""

    start: int
    end: int
    before: float
    after: float

    def weights(self, scale: int, device: torch.device) -> Float[Tensor, " length"]:
        """How much each enlarged pixel counts. Those of all windows add up to 1."""
        places = (torch.arange(self.start * scale, self.end * scale, device=device) + 0.5) / scale
        begin, end = (((places - edge) / _FADE + 0.5).clamp(0, 1) for edge in (self.before, self.after))
        return begin - end


def _windows(length: int, network: Network, tile: int) -> list[_Window]:
    """Divide a side into windows of equal length that overlap by ``OVERLAP`` or more."""
    if length <= tile or network.whole:
        return [_Window(0, length, -math.inf, math.inf)]
    count = math.ceil((length - OVERLAP) / (tile - OVERLAP))
    starts = [index * (length - tile) // (count - 1) for index in range(count)]
    edges = [-math.inf, *((start + tile + after) / 2 for start, after in pairwise(starts)), math.inf]
    return [_Window(start, start + tile, *edges[index : index + 2]) for index, start in enumerate(starts)]
