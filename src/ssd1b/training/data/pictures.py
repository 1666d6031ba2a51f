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

from ssd1b.edges import canny
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


def is_transparent(data: bytes) -> bool:
    """Return whether an image has an alpha channel or a transparent colour, without decoding pixels.

    Raises:
        Unusable: it is not an image, or too large.
    """
    with _opened(data) as image:
        return image.has_transparency_data


def decode_and_crop(data: bytes, placement: Placement) -> NDArray[np.uint8]:
    """Decode an image, resize it to cover its bucket, and crop it: ``[height, width, 3]``.

    Raises:
        Unusable: the image is damaged.
    """
    with _upright(data, placement) as upright:
        return _cropped(_rgb(upright, "white"), placement, placement.bucket, Image.Resampling.LANCZOS)


def decode_mask(data: bytes, placement: Placement, *, cell: int, alpha: bool) -> NDArray[np.uint8]:
    """Decode a mask and crop it like its image; each cell is the mean of its pixels: ``[rows, columns]``.

    Args:
        data: of a grey image, in which white counts and transparent is black; or of an image with
            transparency.
        placement: of the image to which the mask belongs. The mask may have another size, of the same shape.
        cell: sides of a cell in pixels.
        alpha: whether the mask is the opacity of the image.

    Raises:
        Unusable: the mask is damaged.
    """
    bucket = Size(placement.bucket.height // cell, placement.bucket.width // cell)
    with _upright(data, placement) as upright:
        mask = upright.convert("RGBA").getchannel("A") if alpha else _rgb(upright, "black").convert("L")
        return _cropped(mask, placement, bucket, Image.Resampling.BOX)


def decode_control(data: bytes, placement: Placement, *, edges: bool) -> NDArray[np.uint8]:
    """Decode a control image and crop it like its image, ``[1 or 3, height, width]``: 1 if it is grey.

    Args:
        data: of the control image. Transparent parts are white, as in images.
        placement: of the image that it belongs to. It may have another size, of the same shape.
        edges: whether the control image is the edges of this image.

    Raises:
        Unusable: the image is damaged.
    """
    pixels = decode_and_crop(data, placement)
    if edges:
        return canny(pixels)[None]
    levels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return levels[:1] if (levels == levels[:1]).all() else levels


def _cropped(
    image: Image.Image, placement: Placement, size: tuple[int, int], how: Image.Resampling
) -> NDArray[np.uint8]:
    """Cut the placement's crop out of an upright image, and resize it to a height and a width."""
    resized, bucket, (top, left) = placement.resized, placement.bucket, placement.crop
    if placement.mirrored:
        left = placement.mirror.crop[1]
    # Resizing only the crop gives the same pixels as resizing the whole image, in less memory.
    down, across = image.height / resized.height, image.width / resized.width
    box = (left * across, top * down, (left + bucket.width) * across, (top + bucket.height) * down)
    pixels = np.array(image.resize((size[1], size[0]), how, box=box))
    return np.ascontiguousarray(pixels[:, ::-1]) if placement.mirrored else pixels


@contextmanager
def _upright(data: bytes, placement: Placement) -> Generator[Image.Image, None, None]:
    """Decode an image in the orientation in which it is shown; not much larger than ``placement`` needs."""
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
        yield upright


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


def _rgb(image: Image.Image, background: str) -> Image.Image:
    """Convert any mode to RGB with 8 bits, on a background of one colour."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(below, image).convert("RGB")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 8 bits instead of scaling
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
