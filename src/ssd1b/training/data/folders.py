"""Folders of images, with captions in text files of the same stem or in ``metadata.jsonl``."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ssd1b.errors import InputError
from ssd1b.files import disk_error, named, open_regular
from ssd1b.picture_names import PICTURES, UNREAD, captions_by_picture
from ssd1b.training.data.examples import (
    Example,
    Unusable,
    decoded,
    fail,
    parse_row,
    read,
    read_inside,
    row_captions,
)

METADATA = "metadata.jsonl"

_MAX_ROW_BYTES = 2**20
"""Largest size of a line in ``METADATA``."""


def folder_examples(folder: Path, field: str | None) -> list[Example]:
    """List the captioned images in a folder and its subfolders, following links.

    If there is a ``metadata.jsonl`` (Hugging Face's image folder: ``file_name``, relative to it, and the
    caption), its rows are the examples, and may name only files inside ``folder``. Otherwise an image's
    caption is the text file of the same stem. The case of suffixes does not matter.

    Raises:
        InputError: a folder cannot be read, or a row is too long.
    """
    files = list(files_below(folder))
    metadata = [path for path in files if path.name.lower() == METADATA]
    return list(_image_folder(folder, metadata, field) if metadata else _text_folder(folder, files))


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, sorted; each folder once, even if links lead to it.

    Raises:
        InputError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    if folder.is_dir():
        _first_time(str(folder), seen)

    def refuse(error: OSError) -> None:
        raise disk_error(f"cannot read {named(error.filename or folder)}", error) from None

    found: list[Path] = []
    for where, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        folders.sort()
        folders[:] = [name for name in folders if _first_time(os.path.join(where, name), seen)]
        found += [Path(where, name) for name in names]
    yield from sorted(found)


def _first_time(folder: str, seen: set[tuple[int, int]]) -> bool:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    new = identity not in seen
    seen.add(identity)
    return new


def _text_folder(folder: Path, files: list[Path]) -> Iterator[Example]:
    captions = captions_by_picture(files)
    for path in files:
        suffix = path.suffix.lower()
        key = path.relative_to(folder).as_posix()
        if path.name.startswith("."):
            continue
        if suffix in PICTURES:
            text = captions.get(path)
            yield Example(
                key,
                partial(read, path),
                partial(fail, "caption missing") if text is None else partial(_text, text),
            )
        elif suffix in UNREAD:
            broken = partial(fail, f"of a kind that is not read ({suffix})")
            yield Example(key, broken, broken)


def _image_folder(folder: Path, metadata: list[Path], field: str | None) -> Iterator[Example]:
    for path in metadata:
        name = path.relative_to(folder).as_posix()
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            where = f"{name}:{number}"
            try:
                row = parse_row(line)
                key = (path.parent.relative_to(folder) / row["file_name"]).as_posix()
            except (Unusable, KeyError, TypeError):
                broken = partial(fail, f"no line of {METADATA} with a file_name")
                yield Example(where, broken, broken)
            else:
                picture = partial(read_inside, folder, path.parent, row["file_name"], where)
                yield Example(key, picture, partial(row_captions, row, field))


def _lines(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while line := file.readline(_MAX_ROW_BYTES + 1):
            if len(line) > _MAX_ROW_BYTES:
                raise InputError(f"{named(path)} has a line of more than {_MAX_ROW_BYTES} bytes")
            yield line


def _text(path: Path) -> list[str]:
    return [decoded(read(path))]
