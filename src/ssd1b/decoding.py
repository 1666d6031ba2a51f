"""Pictures and masks that an image is generated from: untrusted files to 8-bit pixels of the image's size.

Pillow is imported on first use, because settings are checked without it.

- A picture is rotated by its EXIF orientation; transparency is laid over white, as in AUTOMATIC1111;
  palettes, grey, CMYK and 16 bits become 8-bit RGB; an animation gives its first frame.
- A mask is grey: white is repainted, black is kept. Transparent parts count as black.
"""

import io
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ssd1b.canvas import Layout, Source, lay_out, read_sides
from ssd1b.errors import InputError, prefix_errors
from ssd1b.files import named
from ssd1b.inputs import InputFile

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FILE_BYTES = 64 * 2**20
MAX_READ_PIXELS = 32 * 2**20
"""Limits for reading: bytes of the file, pixels of the image."""

RESIZE_MODES = {
    "crop": "scale to cover the image, and cut off what extends beyond it, equally on both sides",
    "stretch": "scale width and height separately",
}
"""How a picture is fitted to another size; AUTOMATIC1111's "Crop and resize" and "Just resize"."""

_OTHERS = {
    re.compile(rb"GIF8[79]a"): "GIF",
    re.compile(rb"BM.{4}\0{4}", re.DOTALL): "BMP",
    re.compile(rb"II[*+]\0|MM\0[*+]"): "TIFF",
    re.compile(rb".{4}ftypavi[fs]", re.DOTALL): "AVIF",
    re.compile(rb".{4}ftyp(hei[cxms]|hev[cm]|mif1|msf1)", re.DOTALL): "HEIC",
    re.compile(rb"\xff\x0a|\0{3}\x0cJXL "): "JPEG XL",
    re.compile(rb"\s*(<\?xml[^>]*>\s*)?<svg\b"): "SVG",
    re.compile(rb"%PDF-"): "PDF",
}
"""Formats of images that are not read, by how their files begin, for errors."""

_ASPECT_TOLERANCE = 0.02
"""Largest relative difference between the aspect ratios of a picture and its mask: rounded sizes pass."""


@contextmanager
def opened(data: bytes) -> Generator[Any, None, None]:
    """Open an untrusted image, a ``PIL.Image.Image``; any defect raises ``InputError``.

    Its size is checked before pixels are allocated.
    """
    from PIL import Image

    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"the file is too large: at most {MAX_FILE_BYTES} bytes are allowed")
    try:
        with warnings.catch_warnings():
            # Pillow warns about damaged EXIF, and skips it.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
                if image.width * image.height > MAX_READ_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"the image is too large: at most {MAX_READ_PIXELS} pixels are allowed") from None
    # Pillow raises many types of exceptions for damaged files.
    except Exception as error:
        kind = next((name for pattern, name in _OTHERS.items() if pattern.match(data)), None)
        why = f"it is a {kind}, convert it" if kind else "another format, or damaged"
        raise InputError(f"not a readable PNG, JPEG or WebP: {why}") from error


def identify_picture(path: str) -> InputFile:
    """Identify a PNG, JPEG or WebP; it is decoded, so that a damaged one is refused before a model is loaded.

    Raises:
        InputError: see ``InputFile.of`` and ``opened``.
    """
    found = InputFile.of(path, most=MAX_FILE_BYTES)
    picture_size(found)
    return found


@lru_cache(maxsize=1024)
def picture_size(file: InputFile) -> tuple[int, int]:
    """Return a picture's width and height in pixels, after rotation; its pixels are decoded, too.

    Raises:
        InputError: see ``InputFile.read`` and ``opened``.
    """
    with _decoding(file) as image:
        image.load()
        return upright_size(image)


def upright_size(image: "Image") -> tuple[int, int]:
    """Return the width and height of an opened picture after its EXIF rotation."""
    orientation = image.getexif().get(0x0112, 1)
    width, height = image.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def read_picture(file: InputFile) -> "Image":
    """Decode a picture to RGB, at its own size.

    Raises:
        InputError: as ``read_source``.
    """
    with _decoding(file) as image:
        return _upright(image, "RGB", "white")


def layered(image: "Image") -> "Image":
    """Convert an opened picture to RGB, or RGBA if it has transparency, and apply its EXIF orientation."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(_in_8_bits(image))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


@lru_cache(maxsize=8)
def read_source(picture: InputFile, mask: InputFile | None, layout: Layout) -> Source:
    """Decode a picture and its mask, fit both to a size, and lay them out. The last results stay in memory.

    Args:
        picture: the picture.
        mask: a mask of any size with the picture's aspect ratio.
        layout: sizes, and what the mask means; see ``canvas.lay_out``.

    Raises:
        NotFoundError: a file is gone.
        ConflictError: a file has changed.
        InputError: a file is not a readable PNG, JPEG or WebP, or too large; the mask has another aspect
            ratio, or is black everywhere.
    """
    from PIL import Image, ImageOps

    pixels = read_picture(picture)
    grey = None
    if mask is not None:
        with _decoding(mask) as image:
            grey = _upright(image, "L", "black")
        if layout.mask_change == "black":
            grey = ImageOps.invert(grey)
        if grey.size != pixels.size:
            # Both sides may have been rounded to whole pixels, so the ratios need not be equal.
            ratio = grey.width * pixels.height / (grey.height * pixels.width)
            if abs(ratio - 1) > _ASPECT_TOLERANCE:
                raise InputError(
                    f"mask is {grey.width}x{grey.height} and the picture {pixels.width}x{pixels.height}: "
                    "both must have the same size, or at least the same aspect ratio"
                )
            grey = grey.resize(pixels.size, Image.Resampling.BILINEAR)
    if layout.mask_area == "whole":
        left, top, right, bottom = read_sides(layout.outpaint) if layout.outpaint else (0, 0, 0, 0)
        size = (layout.width - left - right, layout.height - top - bottom)
        pixels = _fitted(pixels, *size, layout.resize_mode, Image.Resampling.LANCZOS)
        if grey is not None:
            grey = _fitted(grey, *size, layout.resize_mode, Image.Resampling.BILINEAR)
    with prefix_errors(named(picture.path if mask is None else mask.path)):
        return lay_out(pixels, grey, layout)


@contextmanager
def _decoding(file: InputFile) -> Generator[Any, None, None]:
    data = file.read(most=MAX_FILE_BYTES)
    with prefix_errors(named(file.path)), opened(data) as image:
        yield image


def _upright(image: "Image", mode: str, background: str) -> "Image":
    """Apply the EXIF orientation, and lay transparent parts over a background; "RGB" or "L"."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(_in_8_bits(image))
    if not image.has_transparency_data:
        return image.convert(mode)
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer).convert(mode)


def _in_8_bits(image: "Image") -> "Image":
    """Scale 16-bit grey, which Pillow would clip at 255; other 16-bit images it scales itself."""
    if not image.mode.startswith("I"):
        return image
    scaled = image.convert("I").point(lambda level: level * (255 / 65535) + 0.5).convert("L")
    scaled.info = {"exif": image.info["exif"]} if "exif" in image.info else {}
    return scaled


def _fitted(image: "Image", width: int, height: int, mode: str, resample: Any) -> "Image":
    """Fit an image to a size; one of that size already keeps its exact pixels."""
    from PIL import ImageOps

    if image.size == (width, height):
        return image
    if mode == "stretch":
        return image.resize((width, height), resample)
    return ImageOps.fit(image, (width, height), resample)


def fitting_size(
    file: InputFile, area: int, *, multiple: int, low: int, high: int, most: int
) -> tuple[int, int]:
    """Choose the size of an image that is generated from a picture.

    It is the picture's, rounded to multiples. A picture beyond the limits is scaled to ``area``, keeping its
    aspect ratio as far as the limits of the sides allow.

    Args:
        file: the picture.
        area: number of pixels that the model was trained on.
        multiple: both sides are multiples of it.
        low: smallest side.
        high: largest side.
        most: maximum number of pixels.

    Returns:
        Width and height in pixels.

    Raises:
        InputError: as ``picture_size``.
    """
    width, height = picture_size(file)
    sides = _rounded(width, height, 1.0, multiple, low, high)
    if sides[0] * sides[1] <= most and max(width, height) <= high:
        return sides
    scale = min((area / (width * height)) ** 0.5, high / max(width, height))
    return _rounded(width, height, scale, multiple, low, high)


def _rounded(width: int, height: int, scale: float, multiple: int, low: int, high: int) -> tuple[int, int]:
    first, second = (
        min(max(round(side * scale / multiple) * multiple, low), high) for side in (width, height)
    )
    return first, second
