"""From the bytes of a picture's file to its size and to pixels, whatever the file holds."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from ssd1b.training.data.buckets import Placement
from ssd1b.training.data.examples import Unusable

MAX_PIXELS = 89_478_485
"""Of what is decoded: Pillow's own limit against decompression bombs, a quarter of a gigabyte in RGB."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


class Size(NamedTuple):
    """Height and width in pixels, as people see the picture."""

    height: int
    width: int


def digest_of(data: bytes) -> str:
    """What a content is known by."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def size_of(data: bytes) -> Size:
    """Read the size out of a picture's header; no pixel is decoded.

    Raises:
        Unusable: no picture, or too large a one.
    """
    with _opened(data) as image:
        return _seen(image, _turned(image))


def placed(data: bytes, placement: Placement) -> NDArray[np.uint8]:
    """Decode a picture, resize it to cover its bucket and cut out the crop: ``[height, width, 3]``.

    Raises:
        Unusable: the picture is damaged.
    """
    with _opened(data) as image:
        turned = _turned(image)
        resized = placement.resized
        wanted = Size(resized.width, resized.height) if turned else resized
        # A photograph much larger than what is wanted is decoded at a half, a quarter or an eighth at once.
        image.draft(None, (2 * wanted.width, 2 * wanted.height))
        expected = _seen(image, turned)
        upright = ImageOps.exif_transpose(image)
        if (upright.height, upright.width) != expected:
            raise Unusable(
                "picture damaged"
            )  # an orientation behind the pixels, which the header does not have
        # Resizing the crop alone gives the pixels of the whole resized picture, without its memory.
        down, across = upright.height / resized.height, upright.width / resized.width
        top, left = placement.crop
        bottom, right = top + placement.bucket.height, left + placement.bucket.width
        box = (left * across, top * down, right * across, bottom * down)
        size_out = (placement.bucket.width, placement.bucket.height)
        return np.array(_rgb(upright).resize(size_out, Image.Resampling.LANCZOS, box=box))


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
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
    # Pillow raises something else for every way in which a file can be damaged.
    except Exception as error:
        raise Unusable("picture damaged") from error


def _turned(image: Image.Image) -> bool:
    """Whether EXIF exchanges width and height."""
    # The base class's method: PNG's own decodes the picture to look for EXIF behind the pixels.
    return Image.Image.getexif(image).get(Base.Orientation) in _TURNED


def _seen(image: Image.Image, turned: bool) -> Size:
    return Size(image.width, image.height) if turned else Size(image.height, image.width)


def _rgb(image: Image.Image) -> Image.Image:
    """Whatever the mode, eight bits of red, green and blue; what is transparent lies on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8 and not scale
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
