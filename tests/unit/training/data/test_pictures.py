"""Whatever a picture's file holds, its pixels come upright, on white, resized and cropped."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from picture_files import as_bytes, smooth
from ssd1b.training.data import pictures
from ssd1b.training.data.buckets import Bucket, Placement, place
from ssd1b.training.data.examples import Unusable
from ssd1b.training.data.pictures import decode_and_crop, decode_mask, is_transparent, size_of

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


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_mirrored_placement_gives_the_mirror_image_of_the_same_crop(orientation: int) -> None:
    data = turned(smooth(61, 47), orientation, "PNG")
    where = place(size_of(data), Bucket(32, 32), crop="random", seed=[orientation])
    mirror = where.mirror
    assert mirror.mirror == where
    np.testing.assert_array_equal(decode_and_crop(data, mirror), decode_and_crop(data, where)[:, ::-1])
    # The coordinates are those of the crop in the mirrored image, as if that had been the file.
    upright = ImageOps.mirror(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    there = mirror._replace(mirrored=False)
    np.testing.assert_allclose(
        decode_and_crop(as_bytes(upright), there).astype(int), decode_and_crop(data, mirror), atol=2
    )
    assert mirror.time_ids[:2] == where.time_ids[:2] and mirror.time_ids[4:] == where.time_ids[4:]
    assert mirror.crop[1] + where.crop[1] + 32 == where.resized.width


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mask_is_cropped_like_its_image_and_averaged_like_sd_scripts(mirrored: bool) -> None:
    grey = smooth(160, 96).convert("L")
    where = place((96, 160), Bucket(64, 64), crop="random", seed=[1])
    where = where._replace(resized=Bucket(96, 160))  # as large as the file: every pixel is one of the file's
    where = where.mirror if mirrored else where
    cells = decode_mask(as_bytes(grey), where, cell=8, alpha=False)
    pixels = decode_and_crop(as_bytes(grey), where)[..., 0].copy()
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None, None].float(), (8, 8), mode="area"
    )
    np.testing.assert_allclose(cells, expected[0, 0], atol=1)
    # A smaller mask of the same shape is the same mask.
    half = grey.resize((80, 48), Image.Resampling.BOX)
    np.testing.assert_allclose(
        decode_mask(as_bytes(half), where, cell=8, alpha=False).astype(int), cells.astype(int), atol=3
    )


def test_masks_are_grey_levels_or_opacity() -> None:
    where = Placement(Bucket(32, 40), Bucket(32, 40), (0, 0), Bucket(32, 40))
    image = smooth(40, 32).convert("RGBA")
    left = Image.new("L", (40, 32), 0)
    left.paste(255, (0, 0, 16, 32))
    image.putalpha(left)
    data = as_bytes(image)
    assert is_transparent(data) and not is_transparent(as_bytes(smooth(40, 32)))
    assert decode_mask(data, where, cell=8, alpha=True).tolist() == [[255, 255, 0, 0, 0]] * 4
    assert decode_mask(as_bytes(left.convert("1")), where, cell=8, alpha=False).tolist() == (
        [[255, 255, 0, 0, 0]] * 4
    )
    hidden = Image.new("RGBA", (40, 32), (255, 255, 255, 0))
    assert decode_mask(as_bytes(hidden), where, cell=8, alpha=False).max() == 0, "transparent is black"
    with pytest.raises(Unusable, match="picture damaged"):
        decode_mask(as_bytes(image.convert("L"))[:400], where, cell=8, alpha=False)
