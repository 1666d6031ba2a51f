"""Folders of images, with captions in text files of the same stem or in ``metadata.jsonl``."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ssd1b.errors import InputError, NotFoundError, shown
from ssd1b.files import disk_error, named, open_regular
from ssd1b.picture_names import CONTROLS, MASKS, PICTURES, UNREAD, beside_pictures, captions_by_picture
from ssd1b.training.data.examples import (
    Columns,
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

_REPEATED = re.compile(r"([1-9]\d{0,2})_(.+)", re.ASCII)
"""sd-scripts' names of folders: how often their images are seen in a pass, and what they show. Numbers of
four digits are years."""


Beside = Mapping[Path, Path]
"""Files beside images, by the images."""


def folder_examples(folder: Path, columns: Columns) -> list[Example]:
    """List the captioned images in a folder and its subfolders, following links.

    If there is a ``metadata.jsonl`` (Hugging Face's image folder: ``file_name``, relative to it, and the
    caption), its rows are the examples, and may name only files inside ``folder``. Otherwise an image's
    caption is the text file of the same stem. The case of suffixes does not matter.

    Masks are ``NAME.mask.png`` or ``NAME-masklabel.png`` beside an image, and control images
    ``NAME.control.png``. A row of ``metadata.jsonl`` may also name its control image.

    If all images are in subfolders with names such as ``10_sks dog``, these have sd-scripts' meaning: each
    image is seen ten times in a pass, and without a text file its caption is "sks dog".

    Raises:
        InputError: a folder cannot be read, or a row is too long.
    """
    files = list(files_below(folder))
    masks, controls = beside_pictures(files, MASKS), beside_pictures(files, CONTROLS)
    metadata = [path for path in files if path.name.lower() == METADATA]
    return list(
        _image_folder(folder, metadata, columns, masks, controls)
        if metadata
        else _text_folder(folder, files, masks, controls)
    )


def pictures_in(folder: Path, setting: str, words: Sequence[str]) -> dict[str, Path]:
    """Return the images of a folder by the keys of those that they belong to, without suffixes.

    Args:
        folder: of masks or control images with the names of the images in another folder.
        setting: name of the setting, for the error.
        words: what the setting may be instead of a folder, likewise.

    Raises:
        InputError: there is no such folder, it cannot be read, or it has no images.
    """
    files = files_below(folder) if folder.is_dir() else ()
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in files
        if path.suffix.lower() in PICTURES
    }
    if not found:
        raise NotFoundError(
            f"{setting} is {shown(str(folder))}: it must be {', '.join(words)} or a folder of {setting}"
        )
    return found


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


def _text_folder(folder: Path, files: list[Path], masks: Beside, controls: Beside) -> Iterator[Example]:
    captions, seen = captions_by_picture(files), {*masks.values(), *controls.values()}
    files = [path for path in files if not path.name.startswith(".") and path not in seen]
    repeated = _repeated(folder, [path for path in files if path.suffix.lower() in PICTURES])
    for path in files:
        suffix = path.suffix.lower()
        key = path.relative_to(folder).as_posix()
        if suffix in PICTURES:
            text, (repeats, subject) = captions.get(path), repeated.get(path, (1, None))
            without = partial(fail, "caption missing") if subject is None else partial(list, (subject,))
            yield Example(
                key,
                partial(read, path),
                without if text is None else partial(_text, text),
                repeats,
                mask=partial(read, masks[path]) if path in masks else None,
                control=partial(read, controls[path]) if path in controls else None,
            )
        elif suffix in UNREAD:
            broken = partial(fail, f"of a kind that is not read ({suffix})")
            yield Example(key, broken, broken)


def _repeated(folder: Path, pictures: Sequence[Path]) -> dict[Path, tuple[int, str]]:
    """Return the repeats and the caption of each image, if all of their folders have sd-scripts' names."""
    below = {path: path.relative_to(folder).parts for path in pictures}
    names = {path: _REPEATED.fullmatch(parts[0]) if len(parts) > 1 else None for path, parts in below.items()}
    found = {path: (int(each[1]), each[2].strip()) for path, each in names.items() if each is not None}
    return found if len(found) == len(pictures) else {}


def _image_folder(
    folder: Path, metadata: list[Path], columns: Columns, masks: Beside, controls: Beside
) -> Iterator[Example]:
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
                inside, picture = partial(read_inside, folder, path.parent), path.parent / row["file_name"]
                mask, control = (
                    os.path.relpath(beside[picture], path.parent) if picture in beside else None
                    for beside in (masks, controls)
                )
                control = row.get(columns.control) or control
                yield Example(
                    key,
                    partial(inside, row["file_name"], where),
                    partial(row_captions, row, columns.caption),
                    mask=None if mask is None else partial(inside, mask, where),
                    control=partial(inside, control, where) if isinstance(control, str) else None,
                )


def _lines(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while line := file.readline(_MAX_ROW_BYTES + 1):
            if len(line) > _MAX_ROW_BYTES:
                raise InputError(f"{named(path)} has a line of more than {_MAX_ROW_BYTES} bytes")
            yield line


def _text(path: Path) -> list[str]:
    try:
        return [decoded(read(path))]
    except Unusable as trouble:  # the report names the image
        raise Unusable(f"{path.suffix} file: {trouble}") from None
