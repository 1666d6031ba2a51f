"""Untrusted image files: their size and their pixels."""

import hashlib
import io
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from ssd1b.training.data.buckets import Placement
from ssd1b.training.data.examples import Unusable

MAX_PIXELS = 89_478_485
"""Pillow's limit against decompression bombs: a quarter of a gigabyte in RGB."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


class Size(NamedTuple):
    """Height and width in pixels, in the orientation in which the image is shown."""

    height: int
    width: int


def digest_of(data: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def size_of(data: bytes) -> Size:
    """Read the size from an image's header, without decoding pixels.

    Raises:
        Unusable: it is not an image, or too large.
    """
    with _opened(data) as image:
        return _size(image, _turned(image))


def decode_and_crop(data: bytes, placement: Placement) -> NDArray[np.uint8]:
    """Decode an image, resize it to cover its bucket, and crop it: ``[height, width, 3]``.

    Raises:
        Unusable: the image is damaged.
    """
    with _opened(data) as image:
        turned = _turned(image)
        resized = placement.resized
        wanted = Size(resized.width, resized.height) if turned else resized
        # JPEG decodes much larger photographs at a half, a quarter or an eighth of their size.
        image.draft(None, (2 * wanted.width, 2 * wanted.height))
        expected = _size(image, turned)
        upright = ImageOps.exif_transpose(image)
        if (upright.height, upright.width) != expected:
            # An orientation behind the pixels, which is not in the header.
            raise Unusable("picture damaged")
        # Resizing only the crop gives the same pixels as resizing the whole image, in less memory.
        down, across = upright.height / resized.height, upright.width / resized.width
        top, left = placement.crop
        bottom, right = top + placement.bucket.height, left + placement.bucket.width
        box = (left * across, top * down, right * across, bottom * down)
        size_out = (placement.bucket.width, placement.bucket.height)
        return np.array(_rgb(upright).resize(size_out, Image.Resampling.LANCZOS, box=box))


@contextmanager
def _opened(data: bytes) -> Generator[Image.Image, None, None]:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unusable(f"picture larger than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise Unusable("no PNG, JPEG or WebP") from error
    except (Unusable, MemoryError):
        raise
    # Pillow raises many kinds of exceptions for damaged files.
    except Exception as error:
        raise Unusable("picture damaged") from error


def _turned(image: Image.Image) -> bool:
    """Return whether EXIF swaps width and height."""
    # The base class's method, since PNG's decodes the image to find EXIF behind the pixels.
    return Image.Image.getexif(image).get(Base.Orientation) in _TURNED


def _size(image: Image.Image, turned: bool) -> Size:
    return Size(image.width, image.height) if turned else Size(image.height, image.width)


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB with 8 bits, on a white background."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 8 bits instead of scaling
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
