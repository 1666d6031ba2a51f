"""Image files: tensors to images and back, and the recipe stored in each file.

Where the recipe is stored (``ssd1b.recipe`` has its two forms):

- PNG: text chunks, ``ssd1b`` with our JSON and ``parameters`` with AUTOMATIC1111's text.
- JPEG and WebP: EXIF, ``MakerNote`` with our JSON after the mark ``ssd1b``, ``UserComment`` with the text in
  AUTOMATIC1111's encoding (UTF-16, big-endian). EXIF reserves MakerNote for the producer of the image; it
  holds any bytes, and photo programs do not show it as a caption.
"""

import io
import itertools
import os
import re
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, PngImagePlugin
from PIL.ExifTags import IFD, Base
from torch import Tensor

from ssd1b.decoding import MAX_FILE_BYTES, opened
from ssd1b.errors import InputError, prefix_errors, unknown
from ssd1b.files import check_path, disk_error, named, read_file, reason
from ssd1b.foreign import KEYS, PARAMETERS, XMP, read_foreign
from ssd1b.metadata import JSON_MARK, UTF16_MARK, read_stealth, read_texts
from ssd1b.recipe import Parameters, Recipe, read_json, read_parameters, write_json, write_parameters
from ssd1b.saving import check_folder, sync, take_name
from ssd1b.settings import GenerationSettings
from ssd1b.tensors import Pixels

FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Suffixes by the formats in which images are saved."""

QUALITY = 95
"""Quality of JPEG and WebP: no visible loss. PNG is lossless."""

MAX_TEXT_LENGTH = 2**20
"""Maximum length of each recipe in a file, in characters."""

POSTPROCESSING = "postprocessing"
"""Key of a text in PNG that says how an image was changed after it was generated, as in AUTOMATIC1111."""

_SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_OTHER_SUFFIXES = {
    ".avif", ".bmp", ".dds", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".jfif", ".jp2",
    ".jxl", ".pdf", ".pgm", ".ppm", ".psd", ".raw", ".svg", ".tga", ".tif", ".tiff",
}  # fmt: skip
"""Suffixes of image formats that cannot be written."""

_SLASHES = tuple(filter(None, (os.sep, os.altsep)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image with its recipe."""

    image: Image.Image
    recipe: Recipe


def to_images(pixels: Pixels) -> list[Image.Image]:
    """Convert pixels to 8-bit RGB images: clip to [-1, 1], round to the nearest level (ties to even).

    Raises:
        FloatingPointError: a pixel is NaN or infinite, and would silently become black or white.
    """
    if not torch.isfinite(pixels).all():
        raise FloatingPointError("the image has pixels that are NaN or infinite")
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def to_pixels(image: Image.Image) -> Pixels:
    """Convert an image to a batch of one, float32; ``to_images`` inverts it exactly for RGB."""
    levels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return (levels / 255 * 2 - 1)[None]


def to_levels(mask: Image.Image | None, size: tuple[int, int]) -> Float[Tensor, "1 1 height width"]:
    """Convert a grey mask to numbers from 0 (black) to 1 (white), float32; None is white everywhere.

    Args:
        mask: a mask of this size.
        size: width and height in pixels.
    """
    if mask is None:
        return torch.ones(1, 1, size[1], size[0])
    return torch.from_numpy(np.array(mask)).float()[None, None] / 255


def encode_picture(picture: Picture, format: str, quality: int = QUALITY) -> bytes:
    """Encode an image with its recipe in one of ``FORMATS``; see ``encode_image``."""
    recipe = picture.recipe
    texts = {PARAMETERS: write_parameters(recipe), "ssd1b": write_json(recipe)}
    return encode_image(picture.image, texts, format, quality)


def encode_image(
    image: Image.Image, texts: Mapping[str, str], format: str, quality: int = QUALITY, **options: Any
) -> bytes:
    """Encode an image with texts in one of ``FORMATS``.

    Args:
        image: the image.
        texts: by their keys in PNG; JPEG and WebP keep only ``parameters`` and ``ssd1b``.
        format: of ``FORMATS``.
        quality: of JPEG and WebP, 0 to 100.
        options: of Pillow.

    Raises:
        InputError: the format is unknown, the texts are too long for it (JPEG holds 64 KiB of EXIF), or the
            image is too large for it (a side of a WebP has 16383 pixels at most).
    """
    if format not in FORMATS:
        raise unknown("image format", format, FORMATS)
    if format == "png":
        options |= {"pnginfo": _text_chunks(texts)}
    else:
        options |= {"exif": _exif(texts), "quality": quality}
    file = io.BytesIO()
    try:
        image.save(file, format, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the image as {format}: {reason(error)}; use png") from None
    return file.getvalue()


def _text_chunks(texts: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        add = chunks.add_itxt if key == XMP else chunks.add_text
        add(key, text)
    return chunks


def _exif(texts: Mapping[str, str]) -> Image.Exif:
    exif = Image.Exif()
    fields = exif.get_ifd(IFD.Exif)
    if "ssd1b" in texts:
        fields[Base.MakerNote] = JSON_MARK + texts["ssd1b"].encode()
    if PARAMETERS in texts:
        fields[Base.UserComment] = UTF16_MARK + texts[PARAMETERS].encode("utf-16-be")
    return exif


def save_picture(picture: Picture, path: str | Path, format: str | None = None) -> Path:
    """Save an image with its recipe, atomically and never over another file.

    Args:
        picture: the image.
        path: a file whose suffix decides the format (.png, .jpg, .jpeg, .webp), or a folder, which is created
            if necessary; in a folder the file is named after seed and prompt. A path is a folder if it exists
            as one, ends with a slash, or has no image suffix. A number is added to a name that is taken.
        format: one of ``FORMATS``; None takes it from the suffix, or PNG in a folder.

    Returns:
        The path of the file.

    Raises:
        InputError: the format is unknown or contradicts the suffix, or the file cannot be written (disk full,
            permission); then no file is left behind.
    """
    folder, stem, suffix = _destination(path, format)
    data = encode_picture(picture, _SUFFIXES[suffix.lower()])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_new(data, folder, stem or picture_stem(picture.recipe.settings), suffix)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise disk_error(f"cannot write {named(path)}", error) from None


def check_destination(path: str | Path, format: str | None = None, recipe: Recipe | None = None) -> Path:
    """Check before generation whether ``save_picture`` could save to a path; nothing is written.

    Args:
        path: as for ``save_picture``.
        format: as for ``save_picture``.
        recipe: checked against the format's limits; None if it is not known yet.

    Returns:
        The folder of the file; it may not exist yet.

    Raises:
        InputError: as ``save_picture``, as far as can be known in advance.
    """
    folder, _, suffix = _destination(path, format)
    check_folder(folder)
    if recipe is not None:
        encode_picture(Picture(image=Image.new("RGB", (8, 8)), recipe=recipe), _SUFFIXES[suffix.lower()])
    return folder


def _destination(place: str | Path, format: str | None) -> tuple[Path, str | None, str]:
    """Split a destination into folder, stem (None to derive it from the recipe) and suffix."""
    if format is not None and format not in FORMATS:
        raise unknown("image format", format, FORMATS)
    check_path(place)
    path = Path(place)
    suffix = path.suffix.lower()
    if str(place).endswith(_SLASHES) or path.is_dir() or not _is_image_suffix(suffix):
        check_path(path / ("x" * 100))  # longer than the result of ``picture_stem``
        return path, None, FORMATS[format or "png"]
    suffix_format = _SUFFIXES.get(suffix)
    if suffix_format is None:
        error = unknown("image suffix", path.suffix, _SUFFIXES)
        raise InputError(f"{error}; to name a folder, end the path with a slash")
    if format not in (None, suffix_format):
        raise InputError(f"format is {format!r}, but the name {path.name!r} means {suffix_format!r}")
    check_path(path.with_name(f"{path.stem}-123456{suffix}"))  # room for a number
    return path.parent, path.stem, path.suffix


def _is_image_suffix(suffix: str) -> bool:
    """Whether a suffix is an image's, of any format or misspelt; ".5" and ".02" are not."""
    if suffix in _SUFFIXES or suffix in _OTHER_SUFFIXES:
        return True
    return suffix[1:].isalpha() and bool(get_close_matches(suffix, _SUFFIXES, n=1, cutoff=0.7))


def picture_stem(settings: GenerationSettings) -> str:
    """Derive a file name from seed and prompt: at most 81 ASCII letters, digits and hyphens."""
    ascii_prompt = unicodedata.normalize("NFKD", settings.prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub("[^a-z0-9]+", "-", ascii_prompt)[:60].strip("-")
    return f"{settings.seed}-{slug}".rstrip("-")


def write_new(data: bytes, folder: Path, stem: str, suffix: str) -> Path:
    """Write a temporary file in a folder, then move it to the first free name, with a number if necessary.

    Raises:
        OSError: the disk refused.
    """
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
    """Read the recipe in an image file, or another program's settings.

    Raises:
        InputError: the file cannot be read, is not a PNG, JPEG or WebP, is too large, or its recipe is
            missing or damaged.
    """
    data = read_file(path, most=MAX_FILE_BYTES)
    with prefix_errors(named(path)):
        return decode_recipe(data)


def open_picture(path: str | Path) -> Image.Image:
    """Read an image file as RGB, rotated by its EXIF orientation.

    Raises:
        InputError: the file cannot be read, is not a PNG, JPEG or WebP, or is too large.
    """
    data = read_file(path, most=MAX_FILE_BYTES)
    with prefix_errors(named(path)), opened(data) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


_KEYS = KEYS | {"ssd1b"}


def settings_texts(image: Image.Image) -> dict[str, str]:
    """Read the texts of an image in which programs write its settings, by their PNG keys.

    Raises:
        InputError: one is too long, or damaged.
    """
    found = read_texts(image)
    if not _KEYS & found.keys():
        image.load()  # some programs put text after the pixels, or into them
        found = read_texts(image)
    if not _KEYS & found.keys():
        hidden = read_stealth(image, most=MAX_TEXT_LENGTH)
        found = {} if hidden is None else {PARAMETERS: hidden}
    for key in _KEYS & found.keys():
        if len(found[key]) > MAX_TEXT_LENGTH:
            raise InputError(f"the recipe is too long: at most {MAX_TEXT_LENGTH} characters are allowed")
    return found


def kept_texts(image: Image.Image) -> dict[str, str]:
    """Read the texts of an image that one made from it keeps: its settings, also another program's."""
    try:
        found = settings_texts(image)
    except InputError:  # an image is more than its settings
        return {}
    return {key: text for key, text in found.items() if key in _KEYS | _KEPT}


_KEPT = {"workflow", POSTPROCESSING}


def decode_recipe(data: bytes) -> Recipe | Parameters:
    """Read the recipe in the bytes of an image file; see ``read_recipe``."""
    with opened(data) as image:
        found = settings_texts(image)
    if "ssd1b" in found:
        return read_json(found["ssd1b"])
    if (foreign := read_foreign(found)) is not None:
        return foreign
    if PARAMETERS not in found:
        raise InputError("the image contains no recipe")
    parameters = read_parameters(found[PARAMETERS])
    if not parameters.values and parameters.negative_prompt is None:
        # A comment, a title, or another program's text.
        raise InputError(
            "the image contains text, but no settings: AUTOMATIC1111's text has a line like 'Steps: 20, ...'"
        )
    return parameters
