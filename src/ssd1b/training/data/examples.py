"""An example of captioned pictures, before anything of it has been read, and what reading it takes.

What is wrong with a single example shows when it is read (``Unusable``), so that it can be counted and left
out.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, shown
from ssd1b.files import named, read_file

MOST_BYTES = 256 * 2**20
"""Of a picture's file or a caption's."""

CAPTION_FIELDS = ("text", "caption")
"""Where captions stand in tables and JSON unless told otherwise: image folders' name and img2dataset's."""


class Unusable(Exception):
    """An example cannot be learned from; the message is the kind of trouble, the same for all of a kind."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and what may be said of it, not read yet.

    Attributes:
        key: stable name within the source.
        picture: reads the bytes of the picture's file.
        captions: reads the captions, one or several of which one is drawn each time the picture comes up.

    Both raise ``Unusable`` where there is nothing to read.
    """

    key: str
    picture: Callable[[], bytes]
    captions: Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What is looked for in tables and JSON.

    Attributes:
        image: column of the pictures.
        caption: column or field of the captions; None is the first of ``CAPTION_FIELDS`` that there is.
        split: of a dataset that has several.
    """

    image: str = "image"
    caption: str | None = None
    split: str = "train"


def read(path: Path) -> bytes:
    """Read a regular file, or say what is wrong with it.

    Raises:
        Unusable: it is missing, no regular file, not readable, or too large.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Unusable(f"file larger than {MOST_BYTES >> 20} MiB")
        return read_file(path, most=MOST_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name; InputError: a pipe
        raise Unusable("file missing or not readable") from error


def read_inside(root: Path, folder: Path, name: str, row: str) -> bytes:
    """Read a file that a row of a table names, if it lies inside of the data.

    A table may be a stranger's: a row must not reach other files of the user's, neither by its text nor
    through a link. What a link leads to must lie in ``root``, in ``folder``, or, where ``root`` is a snapshot
    in the hub's cache, whose files are all links, in that repository.

    Args:
        root: folder of the data.
        folder: that the name is relative to.
        name: as the row has it.
        row: names the row in the error.

    Raises:
        InputError: the row names something outside.
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
        raise InputError(f"{named(row)} names {shown(name)}, which is not inside of the data: refused")
    return read(path)


def with_suffix(folder: Path, suffix: str) -> list[Path]:
    """The files of a suffix in a folder, sorted; also in capitals."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix)


def fail(reason: str) -> Any:
    """Be the reading of an example that cannot be read."""
    raise Unusable(reason)


def decoded(data: bytes) -> str:
    """Decode a caption; a byte order mark, as Windows' editors write it, is not part of it."""
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
    """The captions in a row: a text or a list of texts."""
    names = CAPTION_FIELDS if field is None else (field,)
    value = next((row[name] for name in names if row.get(name) is not None), None)
    values = value if isinstance(value, list | tuple) else [value]
    texts = [text for text in values if isinstance(text, str)]
    if not texts or len(texts) < len(values):
        raise Unusable("caption missing")
    return texts
