"""Pictures and files: tensors to images and back, and the recipe carried inside the picture.

Where the recipe goes (``ssd1b.recipe`` has its two forms):

- PNG: text chunks, ``ssd1b`` with our JSON and ``parameters`` with AUTOMATIC1111's text.
- JPEG and WebP: EXIF, ``MakerNote`` with our JSON behind the mark ``ssd1b``, ``UserComment`` with the text in
  AUTOMATIC1111's encoding (UTF-16, big-endian). MakerNote is the field that EXIF keeps for whoever made the
  picture, holds any bytes, and is no caption that a photo program would show.
"""

import io
import itertools
import os
import re
import secrets
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from PIL.ExifTags import IFD, Base

from ssd1b.errors import InputError, prefix_errors, unknown
from ssd1b.files import check_path, disk_error, named, read_file
from ssd1b.foreign import KEYS, PARAMETERS, read_foreign
from ssd1b.metadata import JSON_MARK, UTF16_MARK, read_stealth, read_texts
from ssd1b.recipe import Parameters, Recipe, read_json, read_parameters, write_json, write_parameters
from ssd1b.saving import check_folder, sync, take_name
from ssd1b.settings import GenerationSettings
from ssd1b.tensors import Pixels

FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Formats that pictures are saved in, with the suffix of each."""

QUALITY = 95
"""Of JPEG and WebP: no loss that the eye finds. PNG loses nothing."""

MAX_FILE_BYTES = 64 * 2**20
MAX_READ_PIXELS = 32 * 2**20
MAX_TEXT_LENGTH = 2**20
"""Of what is read: bytes of the file, pixels of the picture, characters of each recipe in it."""

_SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_OTHER_SUFFIXES = {
    ".avif", ".bmp", ".dds", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".jfif", ".jp2",
    ".jxl", ".pdf", ".pgm", ".ppm", ".psd", ".raw", ".svg", ".tga", ".tif", ".tiff",
}  # fmt: skip
"""Of pictures that are not written here."""

_SLASHES = tuple(filter(None, (os.sep, os.altsep)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image and how it was made."""

    image: Image.Image
    recipe: Recipe


def to_images(pixels: Pixels) -> list[Image.Image]:
    """Turn pixels into 8-bit RGB images: clipped to [-1, 1], then rounded to the nearest level, ties to even.

    Raises:
        FloatingPointError: a pixel is NaN or infinite; it would come out black or white without a word.
    """
    if not torch.isfinite(pixels).all():
        raise FloatingPointError("the picture has pixels that are no numbers (NaN or infinite)")
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def to_pixels(image: Image.Image) -> Pixels:
    """Turn an image into a batch of one, float32; ``to_images`` gives the same RGB image back."""
    levels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return (levels / 255 * 2 - 1)[None]


def encode_picture(picture: Picture, format: str) -> bytes:
    """Write a picture with its recipe as the bytes of a file of ``FORMATS``.

    Raises:
        InputError: no such format, or the recipe is too long for it (JPEG holds 64 KiB of EXIF).
    """
    if format not in FORMATS:
        raise unknown("picture format", format, FORMATS)
    recipe, file = picture.recipe, io.BytesIO()
    options: dict[str, Any] = (
        {"pnginfo": _text_chunks(recipe)} if format == "png" else {"exif": _exif(recipe), "quality": QUALITY}
    )
    try:
        picture.image.save(file, format, **options)
    except ValueError as error:
        raise InputError(f"cannot write the picture as {format}: {error}; png holds it") from None
    return file.getvalue()


def _text_chunks(recipe: Recipe) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", write_parameters(recipe))
    chunks.add_text("ssd1b", write_json(recipe))
    return chunks


def _exif(recipe: Recipe) -> Image.Exif:
    exif = Image.Exif()
    fields = exif.get_ifd(IFD.Exif)
    fields[Base.MakerNote] = JSON_MARK + write_json(recipe).encode()
    fields[Base.UserComment] = UTF16_MARK + write_parameters(recipe).encode("utf-16-be")
    return exif


def save_picture(picture: Picture, path: str | Path, format: str | None = None) -> Path:
    """Save a picture with its recipe; never over another file, and never in part.

    Args:
        picture: what to save.
        path: a file whose suffix says the format (.png, .jpg, .jpeg, .webp), or a folder, which is made if
            need be; in it the picture is named after seed and prompt. A folder is whatever exists as one, has
            a slash at its end, or does not end as a picture's name does. A name that is taken gets the next
            free number.
        format: of ``FORMATS``; None is what the suffix says, PNG in a folder.

    Returns:
        The path it was saved under.

    Raises:
        InputError: the format is unknown or not the suffix's, or the file cannot be written (disk full,
            permission); then nothing of it is left.
    """
    folder, stem, suffix = _destination(path, format)
    data = encode_picture(picture, _SUFFIXES[suffix.lower()])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_new(data, folder, stem or picture_stem(picture.recipe.settings), suffix)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise disk_error(f"cannot write {named(path)}", error) from None


def check_destination(path: str | Path, format: str | None = None, recipe: Recipe | None = None) -> Path:
    """Find out before the work of drawing whether ``save_picture`` could save there; nothing is written.

    Args:
        path: as ``save_picture``.
        format: as ``save_picture``.
        recipe: of a picture, which must fit into the format; None as long as it is not known.

    Returns:
        The folder that the picture would lie in; it may not exist yet.

    Raises:
        InputError: as ``save_picture``, as far as can be known before.
    """
    folder, _, suffix = _destination(path, format)
    check_folder(folder)
    if recipe is not None:
        encode_picture(Picture(image=Image.new("RGB", (8, 8)), recipe=recipe), _SUFFIXES[suffix.lower()])
    return folder


def _destination(place: str | Path, format: str | None) -> tuple[Path, str | None, str]:
    """Folder, stem (None for one made of the recipe) and suffix."""
    if format is not None and format not in FORMATS:
        raise unknown("picture format", format, FORMATS)
    check_path(place)
    path = Path(place)
    suffix = path.suffix.lower()
    if str(place).endswith(_SLASHES) or path.is_dir() or not _meant_as_picture(suffix):
        check_path(path / ("x" * 100))  # longer than what ``picture_stem`` makes
        return path, None, FORMATS[format or "png"]
    said = _SUFFIXES.get(suffix)
    if said is None:
        error = unknown("picture suffix", path.suffix, _SUFFIXES)
        raise InputError(f"{error}; a folder of that name is written with a slash at its end")
    if format not in (None, said):
        raise InputError(f"format is {format!r}, but the name {path.name!r} says {said!r}")
    check_path(path.with_name(f"{path.stem}-123456{suffix}"))  # room for a number
    return path.parent, path.stem, path.suffix


def _meant_as_picture(suffix: str) -> bool:
    """Whether a name with this suffix is a picture's, of any format or misspelt: ".5" and ".02" are none."""
    return suffix in _SUFFIXES or suffix in _OTHER_SUFFIXES or _is_misspelt(suffix)


def _is_misspelt(suffix: str) -> bool:
    return suffix[1:].isalpha() and bool(get_close_matches(suffix, _SUFFIXES, n=1, cutoff=0.7))


def picture_stem(settings: GenerationSettings) -> str:
    """Name a picture after seed and prompt, in ASCII letters, digits and hyphens, at most 81 of them."""
    ascii_prompt = unicodedata.normalize("NFKD", settings.prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub("[^a-z0-9]+", "-", ascii_prompt)[:60].strip("-")
    return f"{settings.seed}-{slug}".rstrip("-")


def _write_new(data: bytes, folder: Path, stem: str, suffix: str) -> Path:
    """Write a whole file under a name of its own, then give it the first name that is free."""
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{stem}{suffix}"
        for number in itertools.count(2):
            if take_name(part, path):
                break
            path = folder / f"{stem}-{number}{suffix}"
        sync(folder)
        return path
    finally:
        part.unlink(missing_ok=True)


def read_recipe(path: str | Path) -> Recipe | Parameters:
    """Read how a picture file was made: our recipe, or else AUTOMATIC1111's text.

    Raises:
        InputError: the file cannot be read, is no PNG, JPEG or WebP, is too large, or carries no recipe or a
            damaged one.
    """
    data = read_file(path, most=MAX_FILE_BYTES)
    with prefix_errors(named(path)):
        return decode_recipe(data)


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture file as people see it: RGB, turned as its camera says.

    Raises:
        InputError: the file cannot be read, is no PNG, JPEG or WebP, or is too large.
    """
    data = read_file(path, most=MAX_FILE_BYTES)
    with prefix_errors(named(path)), _opened(data) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


_KEYS = KEYS | {"ssd1b"}


def decode_recipe(data: bytes) -> Recipe | Parameters:
    """Read the recipe out of the bytes of a picture file, as ``read_recipe`` does."""
    with _opened(data) as image:
        found = read_texts(image)
        if not _KEYS & found.keys():
            image.load()  # some programs put text behind the pixels, or into them
            found = read_texts(image)
        if not _KEYS & found.keys():
            hidden = read_stealth(image, most=MAX_TEXT_LENGTH)
            found = {} if hidden is None else {PARAMETERS: hidden}
    for key in _KEYS & found.keys():
        if len(found[key]) > MAX_TEXT_LENGTH:
            raise InputError(f"the recipe is too long: allowed are {MAX_TEXT_LENGTH} characters")
    if "ssd1b" in found:
        return read_json(found["ssd1b"])
    if (foreign := read_foreign(found)) is not None:
        return foreign
    if PARAMETERS in found:
        return read_parameters(found[PARAMETERS])
    raise InputError("the picture carries no recipe")


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a picture from anywhere; whatever is wrong with it is an ``InputError``."""
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"the file is too large: allowed are {MAX_FILE_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            # Pillow warns about damaged EXIF, and goes on without it.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
                if image.width * image.height > MAX_READ_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"the picture is too large: allowed are {MAX_READ_PIXELS} pixels") from None
    # Pillow raises something else for every way in which a file can be damaged.
    except Exception as error:
        raise InputError("no readable PNG, JPEG or WebP: of another kind, or damaged") from error
