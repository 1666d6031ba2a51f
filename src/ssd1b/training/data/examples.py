"""Examples of captioned images, and the reading of their parts.

Reading a bad example raises ``Unusable``, so that it can be counted and left out.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, shown
from ssd1b.files import named, read_file

MAX_BYTES = 256 * 2**20
"""Largest size of an image file or a caption file."""

CAPTION_FIELDS = ("text", "caption")
"""Default caption fields in tables and JSON, as in image folders and img2dataset."""


class Unusable(Exception):
    """An example cannot be used; the message is the kind of problem, without details of the example."""


@dataclass(frozen=True, slots=True)
class Example:
    """An unread image with its captions.

    Attributes:
        key: stable name within the source.
        picture: reads the bytes of the image file. Raises ``Unusable``.
        captions: reads one or several captions; each use draws one of them. Raises ``Unusable``.
        repeats: how often the image is seen in a pass over the data.
        trigger: text in front of each caption that does not contain it.
        mask: reads the bytes of the image's mask, see ``pictures.decode_mask``; None if it has none. Raises
            ``Unusable``.
        alpha: whether the mask is the opacity of the image that ``mask`` reads.
        control: reads the bytes of what a ControlNet learns to follow, see ``pictures.decode_control``; None
            if there is none. Raises ``Unusable``.
        edges: whether the network follows the edges of the image that ``control`` reads.
    """

    key: str
    picture: Callable[[], bytes]
    captions: Callable[[], Sequence[str]]
    repeats: int = 1
    trigger: str | None = None
    mask: Callable[[], bytes] | None = None
    alpha: bool = False
    control: Callable[[], bytes] | None = None
    edges: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of columns and fields in tables and JSON.

    Attributes:
        image: column of the images.
        caption: column or field of the captions; None is the first of ``CAPTION_FIELDS`` that exists.
        control: column or field of the control images.
        split: of a dataset with several splits.
    """

    image: str = "image"
    caption: str | None = None
    control: str = "conditioning_image"
    split: str = "train"


def read(path: Path) -> bytes:
    """Read a regular file.

    Raises:
        Unusable: it is missing, not a regular file, not readable, or too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Unusable(f"file larger than {MAX_BYTES >> 20} MiB")
        return read_file(path, most=MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name; InputError: a pipe
        raise Unusable("file missing or not readable") from error


def read_inside(root: Path, folder: Path, name: str, row: str) -> bytes:
    """Read a file that a row of a table names, if it lies inside the data.

    Tables are untrusted: a row must not reach other files of the user, neither by its text nor through a
    link. The target of a link must lie in ``root`` or in ``folder``. If ``root`` is a snapshot in the hub's
    cache, whose files are all links, it may also lie in that repository.

    Args:
        root: folder of the data.
        folder: the name is relative to it.
        name: from the row.
        row: name of the row, for the error.

    Raises:
        InputError: the row names a file outside the data.
        Unusable: as ``read``.
    """
    try:
        path = Path(os.path.realpath(folder / name))
        allowed = [Path(os.path.realpath(each)) for each in (root, folder)]
    except (OSError, ValueError) as error:
        raise Unusable("file missing or not readable") from error
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    if Path(name).is_absolute() or not any(path.is_relative_to(each) for each in allowed):
        raise InputError(f"{named(row)} names {shown(name)}, which is not inside the data: refused")
    return read(path)


def with_suffix(folder: Path, suffix: str) -> list[Path]:
    """Return the files in a folder with a suffix in any case, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix)


def fail(reason: str) -> Any:
    """Raise ``Unusable``; stands in for a reader."""
    raise Unusable(reason)


def decoded(data: bytes) -> str:
    """Decode a caption from UTF-8, without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable("caption is not UTF-8") from error


def parse_row(data: bytes) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        row = json.loads(decoded(data))
    except (ValueError, RecursionError) as error:
        raise Unusable("no JSON") from error
    if not isinstance(row, dict):
        raise Unusable("no JSON")
    return row


def row_captions(row: dict[str, Any], field: str | None) -> list[str]:
    """Return the captions of a row, which holds a text or a list of texts."""
    names = CAPTION_FIELDS if field is None else (field,)
    value = next((row[name] for name in names if row.get(name) is not None), None)
    values = value if isinstance(value, list | tuple) else [value]
    texts = [text for text in values if isinstance(text, str)]
    if not texts or len(texts) < len(values):
        raise Unusable("caption missing")
    return texts
