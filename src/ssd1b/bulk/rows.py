"""Rows of prompts and settings from JSONL, CSV, TSV, Parquet or text files, read as a stream.

A row that cannot be used has an ``error`` and does not stop the others. Names of columns are those of the
table of settings: fields (``guidance_scale``), options (``guidance``), aliases and AUTOMATIC1111's.
"""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from ssd1b.errors import InputError, NotFoundError, shown, unknown
from ssd1b.extras import require
from ssd1b.files import check_path, named, open_regular, reason
from ssd1b.numerals import number, whole_number
from ssd1b.settings import OPTIONS, RANDOM_SEED, SETTINGS, Prompt, check_overrides, read_size
from ssd1b.table_files import load_json, parser_reason
from ssd1b.validation import check

File: TypeAlias = Any
"""A file opened for reading bytes; those of fsspec are no ``IO[bytes]``."""

STDIN = "-"
"""Instead of a file: JSON lines from standard input."""

MAX_LINE = 2**20
"""Longest line in bytes."""

MAX_KEPT = 10_000
"""Most characters of a value that is copied to the manifest."""

PROMPT, ID = "prompt", "id"

Record = Mapping[str, Any] | InputError
"""A row as it was read: values by column, or why it cannot be read."""


class Row(NamedTuple):
    """A row of the input.

    Attributes:
        number: its position, from 0.
        id: the value of the column ``id``, otherwise the number.
        prompt: empty if there is an error.
        settings: fields of ``GenerationSettings`` that the row sets.
        kept: values of other columns that are copied to the manifest, as text.
        error: why the row cannot be used, or None.
    """

    number: int
    id: str
    prompt: str
    settings: dict[str, Any]
    kept: dict[str, str]
    error: str | None


def is_url(path: str) -> bool:
    """Whether a path is a URL of fsspec, such as ``s3://bucket/name``."""
    return "://" in path


def read_rows(path: str, *, keep: Collection[str] = ()) -> Iterator[Row]:
    """Read a table of prompts, one row at a time.

    Args:
        path: a file whose suffix names its format, plain or compressed (.gz, .bz2, .xz); a URL of fsspec; or
            ``STDIN``.
        keep: columns that are no settings and are copied to the manifest.

    Raises:
        InputError: the file cannot be read, has no rows, or its first row has a column that is neither a
            setting nor in ``keep``.
    """
    columns: dict[str, str] = {}
    position = -1
    for position, record in enumerate(_records(path)):
        if not isinstance(record, InputError):
            try:
                columns |= {name: _field(name, keep) for name in record if name not in columns}
            except InputError as error:
                if position == 0:  # nothing was generated yet
                    raise
                record = error
        yield _row(position, record, columns)
    if position < 0:
        raise InputError(f"{named(path)} has no rows")


def count_rows(path: str) -> int | None:
    """Count the rows of a local file, in a second for a million; None if only reading it can tell."""
    if path == STDIN or is_url(path):
        return None
    form = _format(path)
    with _opened(path) as file:
        if form == ".parquet":
            return int(_parquet(file).metadata.num_rows)
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return None if form in _DELIMITERS else lines  # a cell of a CSV file may contain line breaks


def _row(position: int, record: Record, columns: Mapping[str, str]) -> Row:
    if isinstance(record, InputError):
        return Row(position, str(position), "", {}, {}, str(record))
    kept: dict[str, str] = {}
    settings: dict[str, Any] = {}
    id, prompt, error = str(position), cast("Any", None), None
    try:
        _check_distinct(record, columns)
        for column, value in record.items():
            field = columns[column]
            if field == _KEPT:
                kept[column] = _text(value)[:MAX_KEPT]
            elif field == ID:
                id = _text(value)[:MAX_KEPT] or id
            elif field == PROMPT:
                prompt = value
            elif value is not None:
                settings |= _setting(field, value)
        check(PROMPT, prompt or "", Prompt)
        if settings.get("seed") == RANDOM_SEED:
            raise InputError("seed is -1: a random image could not be found again; leave the seed out")
        settings = check_overrides(settings)
    except InputError as refused:
        error = str(refused)
    return Row(position, id, _text(prompt), settings, kept, error)


def _check_distinct(record: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Check that no two columns of a row set the same.

    Raises:
        InputError: two columns with values are names of one setting.
    """
    of: dict[str, str] = {}
    for column, value in record.items():
        field = columns[column]
        if value is None or field == _KEPT:
            continue
        if field in of:
            raise InputError(f"the columns {shown(of[field])} and {shown(column)} both set {field}")
        of[field] = column


def _text(value: Any) -> str:
    """Write a value as text; the result can be encoded."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.encode("utf-8", "replace").decode()


def _setting(field: str, value: Any) -> dict[str, Any]:
    """Convert a value, which is text in a CSV file."""
    if field == "size":
        return read_size(str(value))
    if not isinstance(value, str):
        return {field: tuple(cast("list[Any]", value)) if isinstance(value, list) else value}
    if read_item := SETTINGS[field].read:
        return {field: tuple(map(read_item, value.split(" + ")))}
    try:
        return {field: _read(SETTINGS[field].kind, value)}
    except InputError as error:
        raise InputError(f"{field}: {error}") from None


def _read(kind: type, text: str) -> Any:
    if kind in (int, float):
        read: Callable[[str], Any] = whole_number if kind is int else number
        return read(text.strip())
    if kind is tuple:
        parts = [number(each.strip()) for each in text.split(",")]
        return tuple(int(each) if each == int(each) else each for each in parts)
    return text


_KEPT = ""
"""Stands for a column that is copied to the manifest."""


def _names() -> dict[str, str]:
    """Field of ``GenerationSettings`` by each of its names, in lower case with underscores."""
    found = {PROMPT: PROMPT, ID: ID, "size": "size", "text": PROMPT, "caption": PROMPT}
    for option, settings in OPTIONS.items():
        if len(settings) == 1:
            found[option] = settings[0].name
    for field, setting in SETTINGS.items():
        flags = (flag.removeprefix("--") for flag in setting.flags)
        others = [*flags, *setting.aliases, *filter(None, (setting.sdapi, setting.a1111))]
        found = {name: field for name in others if name.lower() != "size"} | found | {field: field}
    return {name.lower().replace("-", "_").replace(" ", "_"): field for name, field in found.items()}


_NAMES = _names()


def _field(column: str, keep: Collection[str]) -> str:
    if column in keep:
        return _KEPT
    name = column.strip().lower().replace("-", "_").replace(" ", "_")
    if name not in _NAMES:
        error = unknown("column", column, [*_NAMES, *keep])
        raise InputError(f"{error}; --keep copies other columns to the manifest")
    return _NAMES[name]


# Formats


_COMPRESSED = (".gz", ".bz2", ".xz")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (".jsonl", ".ndjson", *_DELIMITERS, ".parquet", ".txt")


def _format(path: str) -> str:
    suffixes = [each.lower() for each in Path(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    form = suffixes[-1] if suffixes else ""
    if form not in FORMATS:
        allowed = ", ".join(FORMATS)
        raise InputError(
            f"{named(path)}: the suffix must name a format: {allowed}; or {STDIN} for JSON lines"
        )
    return form


def _records(path: str) -> Iterator[Record]:
    form = ".jsonl" if path == STDIN else _format(path)
    with _opened(path) as file:
        if form == ".parquet":
            yield from _parquet_records(file)
        elif form in _DELIMITERS:
            yield from _csv_records(file, _DELIMITERS[form], named(path))
        elif form == ".txt":
            yield from (each if isinstance(each, InputError) else {PROMPT: each} for each in _lines(file))
        else:
            yield from map(_json_record, _lines(file))


@contextmanager
def _opened(path: str) -> Generator[File, None, None]:
    if path == STDIN:
        if sys.stdin is None:
            raise InputError("cannot read the standard input: it is closed")
        yield sys.stdin.buffer
        return
    if not is_url(path):
        check_path(path)
        open_regular(Path(path)).close()  # no pipe, no device
    import fsspec
    from fsspec.spec import AbstractBufferedFile

    try:
        # Without a type: fsspec has none.
        with cast("Any", fsspec).open(path, "rb", compression="infer") as file:
            # Files of object stores cannot read lines of a limited length.
            yield io.BufferedReader(file) if isinstance(file, AbstractBufferedFile) else file
    except (FileNotFoundError, ImportError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        kind = NotFoundError if isinstance(error, FileNotFoundError) else InputError
        raise kind(f"cannot read {named(path)}: {reason(error)}") from None


def _lines(file: File) -> Iterator[str | InputError]:
    first = True
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE)):
                pass
            yield InputError(f"the line is longer than {MAX_LINE} bytes")
        elif line.strip():
            try:
                yield line.decode("utf-8-sig" if first else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield InputError("the line is not UTF-8")
        first = False


def _json_record(line: str | InputError) -> Record:
    if isinstance(line, InputError):
        return line
    try:
        found = load_json(line)
    except (ValueError, RecursionError) as error:
        return InputError(f"not JSON: {parser_reason(error)}")
    if not isinstance(found, dict):
        return InputError(f"not a JSON object: {shown(found)}")
    return cast("dict[str, Any]", found)


def _csv_records(file: File, delimiter: str, name: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_LINE)
    rows = csv.DictReader(_text_lines(file), delimiter=delimiter)
    try:
        for column, count in Counter(rows.fieldnames or ()).items():
            if count > 1:
                raise InputError(f"{name} has two columns {shown(column)}")
        for row in rows:
            extra = row.pop(None, None)  # type: ignore[call-overload]
            filled = {name: value or None for name, value in row.items()}
            yield InputError("the row has more cells than the first line has names") if extra else filled
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{name}, line {rows.line_num + 1}: {reason(error)}") from None


def _text_lines(file: File) -> Iterator[str]:
    encoding = "utf-8-sig"
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise csv.Error(f"longer than {MAX_LINE} bytes")
        yield line.decode(encoding)
        encoding = "utf-8"


def _parquet(file: File) -> Any:
    require("reading Parquet", "pyarrow")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except ArrowException as error:
        raise InputError(f"not a Parquet file: {reason(error)}") from None


def _parquet_records(file: File) -> Iterable[Record]:
    for batch in _parquet(file).iter_batches(batch_size=1024):
        yield from batch.to_pylist()
