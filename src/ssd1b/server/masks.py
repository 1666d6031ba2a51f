"""Masks as other APIs mean them, in the engine's terms: white is changed, black is kept.

All functions take and return the bytes of files; what is returned is a PNG.
"""

import io

from PIL import Image, ImageFilter, ImageOps

from ssd1b.decoding import opened
from ssd1b.errors import InputError

_OPAQUE = [255 if level > 128 else 0 for level in range(256)]
_DOUBLED = [min(2 * level, 255) for level in range(256)]
"""Grey levels by grey level."""


def from_transparency(data: bytes) -> bytes:
    """Convert a mask of OpenAI's API, whose transparent parts are changed, in proportion to transparency.

    Raises:
        InputError: it is no picture, or transparent nowhere.
    """
    with opened(data) as image:
        upright = ImageOps.exif_transpose(image)
        if not upright.has_transparency_data:
            raise InputError("mask has no transparency: make transparent what is to change")
        mask = ImageOps.invert(upright.convert("RGBA").getchannel("A"))
    if mask.getextrema() == (0, 0):
        raise InputError("mask is transparent nowhere: make transparent what is to change")
    return _png(mask)


def from_a1111(data: bytes, *, invert: bool, blur: tuple[float, float], rounded: bool) -> bytes:
    """Convert a mask of AUTOMATIC1111's API, after ``StableDiffusionProcessingImg2Img.init``.

    Args:
        data: grey, or the opaque parts of a picture with transparency.
        invert: black is changed instead.
        blur: standard deviation of the Gaussian blur in pixels, horizontally and vertically. From half grey
            on, what is blurred is white, so that the blur lies around what was painted.
        rounded: transparency is rounded to opaque or not.

    Raises:
        InputError: it is no picture.
    """
    with opened(data) as image:
        upright = ImageOps.exif_transpose(image)
        mask = upright.convert("L")
        if upright.has_transparency_data:
            alpha = upright.convert("RGBA").getchannel("A")
            if alpha.getextrema() != (255, 255):
                mask = alpha.point(_OPAQUE) if rounded else alpha
    if invert:
        mask = ImageOps.invert(mask)
    if any(blur):
        mask = mask.filter(ImageFilter.GaussianBlur(blur)).point(_DOUBLED)
    return _png(mask)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
