"""Whatever a picture's file holds, its pixels come upright, on white, resized and cropped."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from picture_files import as_bytes, smooth
from ssd1b.training.data import pictures
from ssd1b.training.data.buckets import Bucket, Placement, place
from ssd1b.training.data.examples import Unusable
from ssd1b.training.data.pictures import decode_and_crop, size_of

WHOLE = Placement(Bucket(32, 40), Bucket(32, 40), (0, 0), Bucket(32, 40))


def turned(image: Image.Image, orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return as_bytes(image, format, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_orientation(orientation: int, format: str) -> None:
    data = turned(smooth(60, 44), orientation, format)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    size = size_of(data)
    assert (size.width, size.height) == upright.size
    where = place(size, Bucket(32, 32), crop="random", seed=[orientation])
    by_hand = upright.convert("RGB").resize(
        (where.resized.width, where.resized.height), Image.Resampling.LANCZOS
    )
    top, left = where.crop
    np.testing.assert_allclose(
        decode_and_crop(data, where).astype(int), np.array(by_hand)[top : top + 32, left : left + 32], atol=2
    )


def test_photographs_much_larger_than_wanted_are_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    data = turned(smooth(1024, 640), 6, "JPEG")
    loaded = []
    transpose = ImageOps.exif_transpose
    monkeypatch.setattr(
        ImageOps, "exif_transpose", lambda image: loaded.append(image.size) or transpose(image)
    )
    where = place(size_of(data), Bucket(64, 32), crop="centre", seed=[0])
    small = decode_and_crop(data, where)
    assert loaded == [(128, 80)]
    by_hand = transpose(Image.open(io.BytesIO(data))).resize(
        (where.resized.width, where.resized.height), Image.Resampling.LANCZOS
    )
    top, left = where.crop
    np.testing.assert_allclose(small.astype(int), np.array(by_hand)[top : top + 64, left : left + 32], atol=6)


def test_what_is_transparent_becomes_white() -> None:
    image = smooth(40, 32).convert("RGBA")
    alpha = np.full((32, 40), 255, np.uint8)
    alpha[:16] = 0
    image.putalpha(Image.fromarray(alpha))
    pixels = decode_and_crop(as_bytes(image), WHOLE)
    assert (pixels[:16] == 255).all()
    np.testing.assert_array_equal(pixels[16:], np.array(smooth(40, 32))[16:])


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA"])
def test_modes(mode: str) -> None:
    image = smooth(40, 32).convert(mode)
    np.testing.assert_array_equal(decode_and_crop(as_bytes(image), WHOLE), np.array(image.convert("RGB")))


def test_cmyk() -> None:
    pixels = decode_and_crop(as_bytes(smooth(40, 32).convert("CMYK"), "JPEG", quality=100), WHOLE)
    np.testing.assert_allclose(pixels.astype(int), np.array(smooth(40, 32)), atol=8)


def test_sixteen_bits_of_grey_are_scaled() -> None:
    grey = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) * 51
    pixels = decode_and_crop(as_bytes(Image.fromarray(grey)), WHOLE)
    np.testing.assert_array_equal(pixels, np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_cut_short(format: str) -> None:
    data = as_bytes(smooth(200, 160), format)
    data = data[: len(data) * 2 // 3]
    with pytest.raises(Unusable, match=r"damaged|no PNG"):
        size_of(data)  # WebP's header tells; the others' does not
        decode_and_crop(data, WHOLE)


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(Unusable, match="larger than"):
        size_of(data)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40 * 32 - 1)
    with pytest.raises(Unusable, match="larger than"):
        size_of(as_bytes(smooth(40, 32)))
