"""Masks as other APIs mean them, in the engine's terms: white is changed, black is kept.

All functions take and return the bytes of files; what is returned is a PNG.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from ssd1b.decoding import opened
from ssd1b.errors import InputError

_OPAQUE = [255 if level > 128 else 0 for level in range(256)]
_DOUBLED = [min(2 * level, 255) for level in range(256)]
_NOT_BLACK = [0, *[255] * 255]
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


def filled(data: bytes, *, mask: bytes) -> bytes:
    """Fill what a mask changes with the colours around it; what is black in the mask keeps its bits.

    The colours are averages over areas that double until they have some of what is kept (push-pull, Gortler
    et al., 1996, section 5).

    Args:
        data: the picture.
        mask: a mask of any size.

    Raises:
        InputError: one is no picture.
    """
    with opened(data) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    with opened(mask) as image:
        grey = image.convert("L").resize(picture.size, Image.Resampling.BILINEAR)
    kept = 1 - np.asarray(grey, dtype=np.float32)[..., None] / 255
    pixels = np.asarray(picture, dtype=np.float32)
    levels = np.clip(_push_pull(pixels, kept) + 0.5, 0, 255).astype(np.uint8)
    return _png(Image.composite(Image.fromarray(levels), picture, grey.point(_NOT_BLACK)))


def _push_pull(pixels: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """Replace pixels of weight below 1 by weighted means around them.

    Args:
        pixels: ``[height, width, 3]``.
        weights: ``[height, width, 1]``, 0 to 1.
    """
    height, width = pixels.shape[:2]
    if height == width == 1:
        return pixels
    shape = (-(-height // 2), 2, -(-width // 2), 2, -1)
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    total = np.pad(weights, odd).reshape(shape).sum((1, 3))
    means = np.pad(pixels * weights, odd).reshape(shape).sum((1, 3)) / np.maximum(total, 1e-6)
    coarse = _push_pull(means, np.minimum(total, 1))
    channels = [
        Image.fromarray(np.ascontiguousarray(coarse[..., each])).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        for each in range(3)
    ]
    return weights * pixels + (1 - weights) * np.stack([np.asarray(each) for each in channels], axis=-1)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
