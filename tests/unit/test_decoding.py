"""Pictures that an image is generated from: every kind of file is decoded as people expect, or refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd1b.canvas import Layout
from ssd1b.decoding import (
    MAX_FILE_BYTES,
    Source,
    fitting_size,
    identify_picture,
    picture_size,
    read_source,
)
from ssd1b.errors import ConflictError, InputError, NotFoundError
from ssd1b.inputs import InputFile


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Results are kept by content, and a test that expects an error needs the file to be read again."""
    read_source.cache_clear()
    picture_size.cache_clear()


def saved(image: Image.Image, path: Path, **options: object) -> InputFile:
    image.save(path, **options)  # type: ignore[arg-type]
    return InputFile.of(path, most=MAX_FILE_BYTES)


def read(picture: InputFile, mask: InputFile | None = None, *, size: tuple[int, int] | None = None) -> Source:
    return read_source(picture, mask, Layout(*(size or picture_size(picture))))


def pixel(source: Source, place: tuple[int, int] = (0, 0)) -> object:
    assert source.picture.mode == "RGB"
    return source.picture.getpixel(place)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_picture_of_the_right_size_keeps_every_bit(tmp_path: Path) -> None:
    original = noise(72, 64)
    for name in ("a.png", "a.webp"):
        found = read(saved(original, tmp_path / name, lossless=True))
        assert found.picture.tobytes() == original.tobytes() and found.mask is None


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_over_white(
    tmp_path: Path, mode: str, color: object, expected: tuple[int, int, int]
) -> None:
    found = pixel(read(saved(Image.new(mode, (64, 64), color), tmp_path / "a.png")))  # type: ignore[arg-type]
    assert found == expected


def test_a_palette_and_its_transparent_color(tmp_path: Path) -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([9, 9, 9, 200, 10, 20])
    assert pixel(read(saved(image, tmp_path / "a.png"))) == (200, 10, 20)
    assert pixel(read(saved(image, tmp_path / "b.png", transparency=1))) == (255, 255, 255)


def test_cmyk_is_ink(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    red, green, blue = np.array(read(saved(ink, tmp_path / "a.jpg", quality=100)).picture)[0, 0].tolist()
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (96, 64), "blue")
    image.paste("red", (0, 0, 48, 32))
    file = saved(image, tmp_path / "a.png", exif=exif)
    width, height = picture_size(file)
    assert (width, height) == ((64, 96) if orientation > 4 else (96, 64))
    corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    right, low = corners[orientation]
    found = read(file)
    assert found.picture.size == (width, height)
    assert pixel(found, (right * (width - 1), low * (height - 1))) == (255, 0, 0)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    file = saved(first, tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    assert pixel(read(file)) == (255, 0, 0)


def test_another_shape_is_cut_or_stretched(tmp_path: Path) -> None:
    image = Image.new("RGB", (192, 64), "red")
    image.paste("blue", (64, 0, 128, 64))
    file = saved(image, tmp_path / "a.png")
    cut = read_source(file, None, Layout(64, 64)).picture
    assert cut.getcolors() == [(64 * 64, (0, 0, 255))]
    stretched = read_source(file, None, Layout(96, 64, "stretch")).picture
    assert stretched.getpixel((0, 0)) == (255, 0, 0) and stretched.getpixel((48, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 768), (512, 768)),
        ((515, 765), (512, 768)),
        ((4032, 3024), (1184, 888)),
        ((2048, 2048), (2048, 2048)),
        ((8000, 500), (4096, 256)),
        ((10, 30), (64, 64)),
        ((1, 5000), (64, 4096)),
    ],
)
def test_an_image_takes_the_size_of_its_picture(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    file = saved(Image.new("L", size), tmp_path / "a.png")
    assert fitting_size(file, 1024**2, multiple=8, low=64, high=4096, most=2048**2) == expected


def test_masks_are_white_where_something_changes(tmp_path: Path) -> None:
    picture = saved(noise(64, 64), tmp_path / "a.png")
    levels = np.zeros((64, 64), dtype=np.uint8)
    levels[:, 32:] = 255
    levels[0] = 100
    mask = read(picture, saved(Image.fromarray(levels), tmp_path / "m.png")).mask
    assert mask is not None and mask.tobytes() == levels.tobytes()
    clear = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 8, 8))
    strokes = read(picture, saved(clear, tmp_path / "s.png")).mask
    assert strokes is not None
    assert (strokes.getpixel((4, 4)), strokes.getpixel((20, 20))) == (255, 0), "transparent is kept"


def test_a_mask_of_another_size_is_fitted_with_its_picture(tmp_path: Path) -> None:
    picture = saved(noise(192, 64), tmp_path / "a.png")
    small = Image.new("L", (96, 32))
    small.paste(255, (48, 0, 96, 32))
    mask = read(picture, saved(small, tmp_path / "m.png"), size=(64, 64)).mask
    assert mask is not None and mask.size == (64, 64)
    assert (mask.getpixel((0, 9)), mask.getpixel((63, 9))) == (0, 255), "cut like the picture"
    with pytest.raises(InputError, match="mask is 64x64 and the picture 192x64: both must have the same"):
        read(picture, saved(Image.new("L", (64, 64), 255), tmp_path / "n.png"))


def test_a_black_mask_is_refused(tmp_path: Path) -> None:
    picture = saved(noise(64, 64), tmp_path / "a.png")
    with pytest.raises(InputError, match=r"m\.png: the mask is black everywhere: paint white"):
        read(picture, saved(Image.new("L", (64, 64)), tmp_path / "m.png"))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def truncated() -> bytes:
    file = io.BytesIO()
    noise(64, 64).save(file, "PNG")
    return file.getvalue()[:2000]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a readable PNG, JPEG or WebP"),
        (b"just text", "not a readable PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(100), "not a readable PNG, JPEG or WebP: it is a GIF, convert it"),
        (b"BM" + bytes(100), "not a readable PNG, JPEG or WebP: it is a BMP, convert it"),
        (bytes(4) + b"ftypheic" + bytes(100), "not a readable PNG, JPEG or WebP: it is a HEIC, convert it"),
        (bomb(50_000, 50_000), "too large: at most 33554432 pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "too large"),
        (bomb(0, 64), "not a readable"),
    ],
    ids=["empty", "text", "GIF", "BMP", "HEIC", "bomb", "largest bomb", "no width"],
)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=words) as error:
        identify_picture(str(tmp_path / "a.png"))
    assert "a.png" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [truncated(), bomb(64, 64)], ids=["truncated", "too few pixels"])
def test_missing_pixels_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    file = InputFile.of(tmp_path / "a.png", most=MAX_FILE_BYTES)
    for use in (lambda: identify_picture(file.path), lambda: read_source(file, None, Layout(64, 64))):
        with pytest.raises(InputError, match=r"a\.png: not a readable"):
            use()
    picture = saved(noise(64, 64), tmp_path / "b.png")
    with pytest.raises(InputError, match=r"a\.png: not a readable"):
        read(picture, file)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="too large"):
        identify_picture(str(tmp_path / "a.png"))


def test_a_file_that_changed_or_is_gone_is_refused(tmp_path: Path) -> None:
    file = saved(noise(64, 64), tmp_path / "a.png")
    noise(64, 72).save(tmp_path / "a.png")
    with pytest.raises(ConflictError, match="has changed"):
        picture_size(file)
    (tmp_path / "a.png").unlink()
    with pytest.raises(NotFoundError, match=r"a\.png"):
        picture_size(file)
