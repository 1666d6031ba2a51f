"""Pictures in a folder, with their captions beside them or in ``metadata.jsonl``."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ssd1b.files import open_regular
from ssd1b.training.data.examples import (
    PICTURES,
    Example,
    Unusable,
    decoded,
    fail,
    parse_row,
    read,
    row_captions,
)

METADATA = "metadata.jsonl"


def folder_examples(folder: Path, field: str | None) -> list[Example]:
    """List a folder's captioned pictures and those below it.

    Where there is a ``metadata.jsonl`` (the Hugging Face image folder: ``file_name``, relative to it, and the
    caption), these are the list. Elsewhere a caption is the text file of the same stem.
    """
    metadata = sorted(folder.rglob(METADATA))
    return list(_image_folder(folder, metadata, field) if metadata else _text_folder(folder))


def _text_folder(folder: Path) -> Iterator[Example]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURES and not path.name.startswith("."):
            text = path.with_suffix(".txt")
            yield Example(path.relative_to(folder).as_posix(), partial(read, path), partial(_text, text))


def _image_folder(folder: Path, metadata: Sequence[Path], field: str | None) -> Iterator[Example]:
    for path in metadata:
        name = path.relative_to(folder).as_posix()
        with open_regular(path) as file:
            lines = file.read().splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parse_row(line)
                file = path.parent / row["file_name"]
            except (Unusable, KeyError, TypeError):
                broken = partial(fail, f"no line of {METADATA} with a file_name")
                yield Example(f"{name}:{number}", broken, broken)
            else:
                key = (path.parent.relative_to(folder) / row["file_name"]).as_posix()
                yield Example(key, partial(read, file), partial(row_captions, row, field))


def _text(path: Path) -> list[str]:
    if not path.exists():
        raise Unusable("caption missing")
    return [decoded(read(path))]
