import errno
import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from PIL.ExifTags import IFD, Base

from rounds import rounds
from ssd1b.decoding import MAX_READ_PIXELS
from ssd1b.errors import InputError
from ssd1b.images import (
    FORMATS,
    MAX_FILE_BYTES,
    MAX_TEXT_LENGTH,
    Picture,
    check_destination,
    decode_recipe,
    encode_picture,
    open_picture,
    picture_stem,
    read_recipe,
    save_picture,
    to_images,
    to_pixels,
)
from ssd1b.recipe import ModelIdentity, Parameters, Recipe, write_json, write_parameters
from ssd1b.settings import resolve_settings


def picture(prompt: str = "a red cube", **given) -> Picture:
    side = np.linspace(0, 255, 64, dtype=np.uint8)
    array = np.stack(np.broadcast_arrays(side[:, None], side[None, :], np.uint8(90)), axis=-1)
    recipe = Recipe(
        settings=resolve_settings(
            prompt, family="ssd-1b", model_defaults={}, preset=None, **({"seed": 7} | given)
        ),
        model=ModelIdentity(name="mini", source="mini-ssd-1b", revision=None, layout="ssd-1b"),
        dtype="float32",
        device="cpu",
        batch_size=1,
        threads=1,
        torch_version="2.13.0",
        ssd1b_version="0.1.0",
    )
    return Picture(image=Image.fromarray(array), recipe=recipe)


# Tensors and images


def test_pixels_are_rounded_to_the_nearest_level_and_clipped():
    levels = torch.tensor([-9.0, -1.0, -1 + 2 * 0.4 / 255, -1 + 2 * 0.6 / 255, 0.0, 1.0, 9.0])
    (image,) = to_images(levels.expand(1, 3, 2, 7).clone())
    assert (image.mode, image.size) == ("RGB", (7, 2))
    assert np.asarray(image)[1, :, 2].tolist() == [0, 0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_picture_of_a_batch_becomes_an_image(dtype):
    pixels = torch.stack([torch.full((3, 8, 16), value, dtype=dtype) for value in (-1.0, 1.0)])
    assert [image.getpixel((3, 3)) for image in to_images(pixels)] == [(0, 0, 0), (255, 255, 255)]


@given(st.integers(0, 2**32 - 1))
def test_every_image_survives_the_way_to_pixels_and_back(seed):
    levels = np.random.default_rng(seed).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    pixels = to_pixels(image)
    assert pixels.shape == (1, 3, 3, 5)
    assert pixels.abs().max() <= 1
    assert np.array_equal(np.asarray(to_images(pixels)[0]), levels)


def test_all_levels_survive():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(levels)  # grey: it becomes RGB
    assert np.array_equal(np.asarray(to_images(to_pixels(image))[0])[..., 1], levels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_pixel_that_is_no_number_is_an_error_and_never_a_black_picture(value):
    pixels = torch.zeros(2, 3, 8, 8)
    pixels[1, 2, 7, 7] = value
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        to_images(pixels)


# The recipe in the file

PROMPTS = st.text(min_size=1, max_size=80).filter(lambda text: text.strip() and "\0" not in text)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=40)
@given(PROMPTS, st.none() | PROMPTS | st.just(""))
def test_the_recipe_comes_back_from_every_format(format, prompt, negative_prompt):
    made = picture(prompt, negative_prompt=negative_prompt)
    assert decode_recipe(encode_picture(made, format)) == made.recipe


@pytest.mark.parametrize("format", FORMATS)
def test_the_picture_comes_back_from_every_format(format):
    made = picture()
    image = Image.open(io.BytesIO(encode_picture(made, format)))
    image.load()
    assert image.format == format.upper()
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(made.image, dtype=int))
    assert difference.max() <= (0 if format == "png" else 8)


@pytest.mark.parametrize("prompt", ["a red cube", "ein grüner Würfel", "赤い立方体 🦊"])
def test_png_carries_the_text_where_automatic1111_looks_for_it(prompt):
    made = picture(prompt)
    image = Image.open(io.BytesIO(encode_picture(made, "png")))
    assert image.info["parameters"] == write_parameters(made.recipe)
    assert image.info["ssd1b"] == write_json(made.recipe)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_damaged_exif_is_read_without_a_warning(tmp_path, format):
    made = picture()
    file = io.BytesIO()
    made.image.save(file, format, exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0" + b"\x01" * 18)
    (tmp_path / "damaged").write_bytes(file.getvalue())
    assert open_picture(tmp_path / "damaged").size == made.image.size
    with pytest.raises(InputError, match="no recipe"):
        decode_recipe(file.getvalue())


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_exif_carries_the_text_where_automatic1111_looks_for_it(format):
    made = picture("赤い立方体 🦊")
    exif = Image.open(io.BytesIO(encode_picture(made, format))).getexif()
    assert Base.ImageDescription not in exif
    comment = exif.get_ifd(IFD.Exif)[Base.UserComment]
    assert comment == b"UNICODE\0" + write_parameters(made.recipe).encode("utf-16-be")


def test_a_recipe_that_jpeg_cannot_hold_is_refused_and_png_holds_it():
    made = picture("🦊" * 9_000, negative_prompt="🦊" * 9_000)
    with pytest.raises(InputError, match="cannot write the image as jpeg: EXIF data is too long; use png"):
        encode_picture(made, "jpeg")
    assert decode_recipe(encode_picture(made, "png")) == made.recipe


def png(info: PngImagePlugin.PngInfo | None = None, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def with_text(*, after: bool = False, itxt: bool = False, zip: bool = False, **texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        (info.add_itxt if itxt else info.add_text)(key, text, zip=zip)
    data = png(info)
    return text_behind_the_pixels(data) if after else data


def text_behind_the_pixels(data: bytes) -> bytes:
    chunks, position = [], 8
    while position < len(data):
        length = struct.unpack(">I", data[position : position + 4])[0]
        chunks.append(data[position : position + 12 + length])
        position += 12 + length
    order = [chunk for chunk in chunks if chunk[4:8] not in (b"tEXt", b"iTXt", b"zTXt", b"IEND")]
    return data[:8] + b"".join(order + [chunk for chunk in chunks if chunk not in order])


TEXT = "a fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"


@pytest.mark.parametrize(
    "form", [{}, {"itxt": True}, {"zip": True}, {"itxt": True, "zip": True}, {"after": True}], ids=str
)
def test_pngs_of_other_programs_are_read(form):
    read = decode_recipe(with_text(parameters=TEXT, **form))
    assert isinstance(read, Parameters)
    assert (read.prompt, read.negative_prompt, read.values["Sampler"]) == ("a fox", "blurry", "Euler a")


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"UNICODE\0" + TEXT.encode("utf-16"),
        b"ASCII\0\0\0" + TEXT.encode(),
        b"\0" * 8 + TEXT.encode(),
    ],
    ids=["be", "le", "bom", "ascii", "undefined"],
)
@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_comments_of_other_programs_are_read_in_every_encoding(format, comment):
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.UserComment] = comment
    exif.get_ifd(IFD.Exif)[Base.MakerNote] = b"Nikon\0 and so on"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format, exif=exif)
    read = decode_recipe(file.getvalue())
    assert isinstance(read, Parameters)
    assert (read.prompt, read.values["Size"]) == ("a fox", "512x512")


def test_our_recipe_is_taken_before_the_text():
    made = picture()
    read = decode_recipe(with_text(parameters=TEXT, ssd1b=write_json(made.recipe)))
    assert read == made.recipe


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'
FITS = b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800)


def other(format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(), "the image contains no recipe"),
        (b"", "not a readable PNG, JPEG or WebP"),
        (SVG, "not a readable PNG, JPEG or WebP"),
        (FITS, "not a readable PNG, JPEG or WebP"),
        (other("GIF"), "not a readable PNG, JPEG or WebP"),
        (other("TIFF"), "not a readable PNG, JPEG or WebP"),
        (other("BMP"), "not a readable PNG, JPEG or WebP"),
        (png_that_claims(60_000, 60_000), "the image is too large"),
        (png_that_claims(10_000, 10_000), "the image is too large"),
        (png_that_claims(8192, 4097), "the image is too large"),
        (with_text(parameters="x" * (MAX_TEXT_LENGTH + 1)), "the recipe is too long"),
        (with_text(parameters="x" * 10_000_000, zip=True), "not a readable PNG"),
        (with_text(ssd1b='{"format": 99}'), "recipe has format 99: this version of ssd1b reads format 1"),
        (with_text(ssd1b="[" * 100_000), "recipe is not valid JSON"),
        (with_text(ssd1b=""), "recipe is not valid JSON"),
        (encode_picture(picture(), "png")[:60], "not a readable PNG"),
        (bytes(MAX_FILE_BYTES + 1), "the file is too large"),
    ],
    ids=range(17),
)
def test_what_is_no_picture_with_a_recipe_is_refused_in_one_line(data, message):
    with pytest.raises(InputError) as refused:
        decode_recipe(data)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_where_text_stands_before_the_pixels_they_are_not_decoded():
    data = png_that_claims(8192, 4096)
    assert MAX_READ_PIXELS == 8192 * 4096
    with pytest.raises(InputError, match="not a readable PNG"):
        decode_recipe(data)
    text = chunk(b"tEXt", b"parameters\0" + TEXT.encode())
    assert isinstance(decode_recipe(data[:33] + text + data[33:]), Parameters)


WHOLE = {format: encode_picture(picture(), format) for format in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=rounds(50, 150))
@given(
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_a_damaged_file_is_read_or_refused(format, damage):
    data = bytearray(WHOLE[format])
    for place, value in damage:
        data[int(place * min(len(data), 3000))] = value
    try:
        read = decode_recipe(bytes(data))
    except InputError:
        return
    assert isinstance(read, Recipe | Parameters)


# Files


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_is_saved_under_its_name_and_read_back(tmp_path):
    made = picture()
    for name in ("one.png", "one.jpg", "one.jpeg", "one.webp", "One.PNG"):
        path = save_picture(made, tmp_path / name)
        assert path == tmp_path / name
        assert read_recipe(str(path)) == made.recipe


def test_in_a_folder_a_picture_is_named_after_seed_and_prompt(tmp_path):
    made = picture("A (red:1.2) cube, über alles!", seed=42)
    assert save_picture(made, tmp_path).name == "42-a-red-1-2-cube-uber-alles.png"
    assert save_picture(made, str(tmp_path / "new" / "deep"), "webp") == (
        tmp_path / "new" / "deep" / "42-a-red-1-2-cube-uber-alles.webp"
    )


@given(PROMPTS, st.integers(0, 2**32 - 1))
def test_names_are_short_and_safe_everywhere(prompt, seed):
    stem = picture_stem(picture(prompt, seed=seed).recipe.settings)
    assert len(stem) <= 81
    assert stem.startswith(str(seed))
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("prompt", ["赤", "../../etc/passwd", "CON", "a\nb", "-rf *"])
def test_no_prompt_leads_out_of_the_folder(tmp_path, prompt):
    path = save_picture(picture(prompt), tmp_path)
    assert path.parent == tmp_path
    assert leftovers(tmp_path) == [path.name]


def test_a_taken_name_gets_the_next_free_number(tmp_path):
    taken = tmp_path / "one.png"
    taken.write_text("mine")
    (tmp_path / "one-2.png").symlink_to(tmp_path / "nowhere")
    paths = [save_picture(picture(), taken) for _ in range(2)]
    assert [path.name for path in paths] == ["one-3.png", "one-4.png"]
    assert taken.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert len(leftovers(tmp_path)) == 4


def no_links(monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("links", [True, False])
def test_many_may_save_at_once_and_none_is_lost(tmp_path, monkeypatch, links):
    if not links:
        no_links(monkeypatch)
    made = [picture(seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda each: save_picture(each, tmp_path / "same.png"), made))
    assert len(set(paths)) == 24
    assert sorted(path.name for path in paths) == leftovers(tmp_path)
    for path, each in zip(paths, made, strict=True):
        assert read_recipe(path) == each.recipe


def test_where_there_are_no_hard_links_nothing_is_overwritten_either(tmp_path, monkeypatch):
    no_links(monkeypatch)
    (tmp_path / "one.png").write_text("mine")
    assert save_picture(picture(), tmp_path / "one.png").name == "one-2.png"
    assert (tmp_path / "one.png").read_text() == "mine"
    assert leftovers(tmp_path) == ["one-2.png", "one.png"]


def test_a_saved_picture_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    path = save_picture(picture(), tmp_path / "one.png")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.fixture
def small_disk():
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_midway_leaves_nothing(tmp_path, small_disk):
    with pytest.raises(InputError, match=r"^cannot write .*one\.png: File too large$"):
        save_picture(picture(), tmp_path / "one.png")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "link"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_whatever_step_fails_nothing_is_left_and_old_files_stay(tmp_path, monkeypatch, step, code):
    old = save_picture(picture(), tmp_path / "one.png").read_bytes()

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, fail)
    reason = "no space left on the disk" if code == errno.ENOSPC else os.strerror(code)
    with pytest.raises(InputError, match=f"cannot write .*: {reason}"):
        save_picture(picture(), tmp_path / "one.png")
    assert leftovers(tmp_path) == ["one.png"]
    assert (tmp_path / "one.png").read_bytes() == old


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_an_interrupt_leaves_nothing_half_written(tmp_path, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_picture(picture(), tmp_path / "one.png")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("one.gif", None, "unknown image suffix '.gif'"),
        ("one.png", "jpeg", "format is 'jpeg', but the name 'one.png' means 'png'"),
        ("folder", "gif", "unknown image format 'gif'"),
        ("one.png", "gif", "unknown image format 'gif'"),
        ("file/one.png", None, "cannot write .*: "),
        ("file", None, "cannot write .*: "),
        ("x" * 300 + ".png", None, "cannot be a path here: File name too long"),
        ("x" * 251 + ".png", None, "cannot be a path here: File name too long"),
        ("x" * 300, None, "cannot be a path here: File name too long"),
        ("new/" + "x" * 300 + "/one.png", None, "cannot be a path here: File name too long"),
        ("/".join(["x" * 250] * 16)[:-20], None, "cannot be a path here: File name too long"),
        ("a\0b.png", None, "cannot be a path here: embedded null byte"),
        ("half-\ud800.png", None, "cannot be a path here: .*surrogates not allowed"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path, name, format, message):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message) as refused:
        save_picture(picture(), f"{tmp_path}/{name}", format)
    assert "\n" not in str(refused.value)
    assert leftovers(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["none.png", ".", "a\0b.png"])
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(InputError, match="cannot read"):
        read_recipe(f"{tmp_path}/{name}")


def test_a_refused_file_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    with pytest.raises(InputError, match=r"^.*notes\.png: not a readable PNG, JPEG or WebP"):
        read_recipe(path)


def test_a_recipe_notes_the_process_that_draws():
    made = picture().recipe
    noted = Recipe.of(made.settings, made.model, dtype="float32", device="cpu", batch_size=1)
    assert noted.torch_version == torch.__version__
    assert noted.threads == torch.get_num_threads()
    assert replace(noted, torch_version="2.13.0", threads=1, ssd1b_version="0.1.0") == made


def test_destination_is_checked_without_writing(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_destination(tmp_path / "new/folder") == tmp_path / "new/folder"
    assert check_destination(tmp_path / "new/cube.webp", "webp") == tmp_path / "new"
    for path, format in (("file/cube.png", None), ("cube.gif", None), ("cube.png", "webp"), ("new", "gif")):
        with pytest.raises(InputError):
            check_destination(tmp_path / path, format)
        with pytest.raises(InputError):
            save_picture(picture(), tmp_path / path, format)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


FOLDERS = [
    "v1.5",
    "v1.5/",
    "2024.01.02",
    "a.b/c.d",
    "run.final",
    "x.5",
    "ends.",
    "one.png/",
    "photos.backup",
    ".hidden",
]


@pytest.mark.parametrize("name", FOLDERS)
def test_only_a_pictures_suffix_makes_a_file(tmp_path, name):
    where = f"{tmp_path}/{name}"
    assert check_destination(where) == Path(where)
    assert save_picture(picture(), where) == Path(where, "7-a-red-cube.png")


@pytest.mark.parametrize(
    "suffix", [".gif", ".BMP", ".tiff", ".avif", ".heic", ".svg", ".pgn", ".jpgg", ".jepg", ".wepb"]
)
def test_suffixes_of_other_pictures_and_misspelt_ones_are_refused(tmp_path, suffix):
    for make in (check_destination, lambda path: save_picture(picture(), path)):
        with pytest.raises(InputError, match=rf"unknown image suffix '{suffix}'.*end the path with a slash"):
            make(f"{tmp_path}/one{suffix}")
    assert save_picture(picture(), f"{tmp_path}/one{suffix}/").parent == tmp_path / f"one{suffix}"


def test_a_recipe_that_does_not_fit_is_refused_before_drawing(tmp_path):
    large = picture("🦊" * 9_000, negative_prompt="🦊" * 9_000).recipe
    for path, format in (("one.jpg", None), ("folder", "jpeg")):
        with pytest.raises(InputError, match="EXIF data is too long; use png"):
            check_destination(tmp_path / path, format, large)
        check_destination(tmp_path / path, format, picture().recipe)
    check_destination(tmp_path / "one.png", recipe=large)
    check_destination(tmp_path / "one.webp", recipe=large)


def test_a_picture_is_on_the_disk_before_it_gets_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    told = []
    fsync, link = os.fsync, os.link

    def note_sync(descriptor):
        told.append("folder" if os.fstat(descriptor).st_mode & 0o40000 else "file")
        fsync(descriptor)

    def note_link(source, target):
        told.append("name")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    save_picture(picture(), tmp_path / "one.png")
    assert told == ["file", "name", "folder"]


def test_a_picture_is_whole_before_it_gets_its_name(tmp_path, monkeypatch):
    link = os.link

    def look(source, target):
        assert not Path(target).exists()
        assert read_recipe(source) == picture().recipe
        link(source, target)

    monkeypatch.setattr(os, "link", look)
    save_picture(picture(), tmp_path / "one.png")
    assert read_recipe(tmp_path / "one.png") == picture().recipe


def test_a_pipe_in_a_pictures_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: it is a named pipe, not a file"):
        read_recipe(tmp_path / "pipe.png")
    assert save_picture(picture(), tmp_path / "pipe.png").name == "pipe-2.png"
