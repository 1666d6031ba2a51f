"""Rows of prompts and settings from JSONL, CSV, TSV, Parquet or text files, read as a stream.

A row that cannot be used has an ``error`` and does not stop the others. Names of columns are those of the
table of settings: fields (``guidance_scale``), options (``guidance``), aliases and AUTOMATIC1111's.
"""

import csv
import io
import json
import math
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from hashlib import blake2b
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from ssd1b.errors import InputError, NotFoundError, prefix_errors, shown, unknown
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

MAX_COLUMNS = 10_000
"""Most columns that are remembered for an error; JSON lines may have other ones in each row."""

LONGEST_ID = 1000
"""Most characters of an id."""

PROMPT, ID = "prompt", "id"

Record = Mapping[str, Any] | InputError
"""A row as it was read: values by column, or why it cannot be read."""

Header = Sequence[str] | None
"""The columns of a table; None for JSON lines, each of which names its own."""


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
        InputError: the file cannot be read, has no rows or no prompts, or has a column that is neither a
            setting nor in ``keep``, by its header or, in JSON lines, by its first row; or no row has a column
            of ``keep``, which standard input cannot tell beforehand.
    """
    if keep and path != STDIN:
        _check_kept(path, keep)
    ids = _Ids()
    position = -1
    with _table(path) as (header, records):
        with prefix_errors(named(path)):
            columns = _columns(header or (), keep)
            if header:
                _check_prompts(columns, all_columns=True)
        for position, record in enumerate(records):
            if not isinstance(record, InputError):
                try:
                    columns |= _columns([name for name in record if name not in columns], keep)
                    if position == 0:
                        _check_prompts(columns, all_columns=False)
                except InputError as error:
                    if position == 0:  # nothing was generated yet
                        raise InputError(f"{named(path)}: {error}") from None
                    record = error
            row = _row(position, record, columns)
            yield ids.checked(row) if ID in columns.values() else row
    if position < 0:
        raise InputError(f"{named(path)} has no rows")


def _check_prompts(columns: Mapping[str, str], *, all_columns: bool) -> None:
    """Check that a column has prompts.

    Args:
        columns: fields by column.
        all_columns: no later row has other columns.

    Raises:
        InputError: none has, or only one that is copied to the manifest instead.
    """
    if PROMPT in columns.values():
        return
    if kept := [
        column for column, field in columns.items() if field == _KEPT and _NAMES.get(column.lower()) == PROMPT
    ]:
        raise InputError(f"--keep {kept[0]} takes the prompts away; the manifest has them in any case")
    if all_columns:
        raise InputError(f"there is no column {PROMPT!r}, nor one called text or caption")


def _check_kept(path: str, keep: Collection[str]) -> None:
    """Check that a table has all columns to keep, reading no more rows than necessary.

    Raises:
        InputError: no row has one of them.
    """
    missing, known = set(keep), set[str]()
    with _table(path) as (header, records):
        for record in records if header is None else [dict.fromkeys(header)]:
            if not isinstance(record, InputError):
                missing.difference_update(record)
                known.update(islice(record, MAX_COLUMNS - len(known)))
            if not missing:
                return
    with prefix_errors(f"{named(path)}, columns to keep"):
        raise unknown("column", min(missing), known)


class _Ids:
    """The ids of all rows so far: their hashes, since the first row of a table with ids.

    Earlier rows have their numbers.
    """

    def __init__(self) -> None:
        self._known = set[bytes]()
        self._begin: int | None = None

    def checked(self, row: Row) -> Row:
        """Let a row fail whose id an earlier one has that did not fail."""
        if self._begin is None:
            self._begin = row.number
        if row.error is not None:
            return row
        digest = blake2b(row.id.encode(), digest_size=16).digest()
        is_number = len(row.id) < 20 and row.id.isdecimal() and str(int(row.id)) == row.id
        if digest not in self._known and not (is_number and int(row.id) < self._begin):
            self._known.add(digest)
            return row
        problem = f"id is {shown(row.id)}, as that of an earlier row: each row needs its own"
        return row._replace(error=f"{problem}; --keep copies a column with equal values")


def count_rows(path: str) -> int | None:
    """Count the rows of a local file, in a second for a million; None if only reading it can tell."""
    if path == STDIN or is_url(path):
        return None
    form = _format(path)
    with _opened(path) as file:
        if form == ".parquet":
            return int(_parquet(file, path).metadata.num_rows)
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
                id = _id(value) or id
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


def _id(value: Any) -> str:
    """Write an id as text; empty if there is none.

    Raises:
        InputError: it is neither text of one line nor a whole number.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # see _setting
    if not isinstance(value, str | int | None) or isinstance(value, bool):
        raise InputError(f"id is {shown(value)}: it must be text or a whole number")
    text = _text(value)
    if len(text) > LONGEST_ID or any(unicodedata.category(each) == "Cc" for each in text):
        raise InputError(
            f"id is {shown(text)}: it must have at most {LONGEST_ID} characters, and no control characters"
        )
    return text


def _setting(field: str, value: Any) -> dict[str, Any]:
    """Convert a value, which is text in a CSV file."""
    if field == "size":
        return read_size(str(value))
    if isinstance(value, float) and SETTINGS[field].kind is int and value.is_integer():
        return {field: int(value)}  # pandas makes such numbers of a column with an empty cell
    if isinstance(value, list) and SETTINGS[field].kind is str and all(isinstance(e, int) for e in value):
        return {field: ",".join(map(str, value))}  # timesteps
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
        text = text.strip()
        return whole_number(text.removesuffix(".0")) if kind is int else number(text)
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


def _columns(header: Sequence[str], keep: Collection[str]) -> dict[str, str]:
    return {column: _field(column, keep) for column in header}


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
_CALLED = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
"""Delimiters as they are called."""

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


def _check_header(name: str, header: Sequence[str]) -> None:
    counts = Counter(header)
    for place, column in enumerate(header, 1):
        if not column.strip():
            raise InputError(
                f"{name}: column {place} has no name; pandas writes its index so, unless index=False"
            )
        if counts[column] > 1:
            raise InputError(f"{name} has two columns {shown(column)}")


@contextmanager
def _table(path: str) -> Generator[tuple[Header, Iterator[Record]], None, None]:
    """Open a table, and yield its header and its rows.

    Raises:
        InputError: it cannot be read, or a column has no name or that of another one.
    """
    form = ".jsonl" if path == STDIN else _format(path)
    name = "the standard input" if path == STDIN else named(path)
    with _opened(path) as file:
        if form == ".parquet":
            table = _parquet(file, path)
            header, records = table.schema_arrow.names, _parquet_records(table)
        elif form in _DELIMITERS:
            header, records = _csv_table(file, form, name)
        elif form == ".txt":
            header, records = [PROMPT], map(_text_record, _full_lines(file, name))
        else:
            header, records = None, _json_records(_full_lines(file, name), name)
        _check_header(name, header or ())
        yield header, records


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


def _lines(file: File, name: str) -> Iterator[str | InputError]:
    """Decode a file's lines, with their ends.

    Raises:
        InputError: the file is UTF-16 or UTF-32, so that none of its lines can be read.
    """
    encoding = "utf-8-sig"
    while line := file.readline(MAX_LINE + 1):
        if encoding == "utf-8-sig" and (line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:4]):
            raise InputError(f"{name} is UTF-16, UTF-32 or no text: save it as UTF-8")
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE)):
                pass
            yield InputError(f"longer than {MAX_LINE} bytes")
        else:
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError:
                yield InputError("not UTF-8: save the file as UTF-8")
        encoding = "utf-8"


def _full_lines(file: File, name: str) -> Iterator[str | InputError]:
    """Read the lines that are not empty, each of which is a row."""
    for line in _lines(file, name):
        if isinstance(line, InputError):
            yield InputError(f"the line is {line}")
        elif line.strip():
            yield line.rstrip("\r\n")


def _text_record(line: str | InputError) -> Record:
    return line if isinstance(line, InputError) else {PROMPT: line}


def _json_records(lines: Iterator[str | InputError], name: str) -> Iterator[Record]:
    for position, line in enumerate(lines):
        if position == 0 and isinstance(line, str) and (line.lstrip().startswith("[") or line.strip() == "{"):
            raise InputError(
                f"{name} is JSON, not JSON lines with an object on each: jq -c '.[]' converts an array"
            )
        yield _json_record(line)


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


def _csv_table(file: File, form: str, name: str) -> tuple[Sequence[str], Iterator[Record]]:
    delimiter = _DELIMITERS[form]
    rows = _csv_rows(file, delimiter, name)
    header = next(rows, [])
    if isinstance(header, InputError):
        raise InputError(f"{name}, {header}")
    if len(header) == 1 and (other := next((each for each in _CALLED if each in header[0]), None)):
        called, rename = _CALLED[delimiter], {each: form for form, each in _DELIMITERS.items()}.get(other)
        raise InputError(
            f"{name}, line 1: the columns are separated by {_CALLED[other]}, and {form} has {called}: "
            + (f"rename it to {rename}" if rename else f"save it with {called}")
        )

    def record(cells: Sequence[str] | InputError) -> Record:
        if isinstance(cells, InputError):
            return cells
        if len(cells) > len(header):
            return InputError("the row has more cells than the first line has names")
        return {column: value or None for column, value in zip_longest(header, cells)}

    return header, map(record, rows)


def _csv_rows(file: File, delimiter: str, name: str) -> Iterator[list[str] | InputError]:
    """Read the rows that are not empty; one with misplaced quotes is an error.

    Raises:
        InputError: a line cannot be read, or a quote is not closed, so that it is unknown where rows begin.
    """

    def lines() -> Iterator[str]:
        for count, line in enumerate(_lines(file, name), 1):
            if isinstance(line, InputError):
                raise InputError(f"{name}, line {count}: {line}")
            yield line

    csv.field_size_limit(MAX_LINE)
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        begin = rows.line_num + 1
        try:
            if cells := next(rows):
                yield cells
        except StopIteration:
            return
        except csv.Error as error:
            if rows.line_num > begin:
                raise InputError(
                    f"{name}, line {begin}: a cell begins with a quote that is not closed ({reason(error)}): "
                    "close it, and write quotes inside a cell twice"
                ) from None
            yield InputError(
                f"line {begin}: misplaced quotes ({reason(error)}): write those inside a cell twice"
            )


def _parquet(file: File, path: str) -> Any:
    require("reading Parquet", "pyarrow")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except ArrowException as error:
        raise InputError(f"{named(path)} is not a Parquet file: {reason(error)}") from None


def _parquet_records(table: Any) -> Iterator[Record]:
    for batch in table.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            yield {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Convert a value of Parquet to one of JSON's kinds; those that JSON lacks become text."""
    match value:
        case float() if math.isnan(value):
            return None  # pandas writes an empty cell as NaN
        case Decimal():
            return int(value) if value == int(value) else float(value)
        case bytes():
            return value.decode(errors="replace")
        case list():
            return [_plain(each) for each in cast("list[Any]", value)]
        case dict():
            return {str(name): _plain(each) for name, each in cast("dict[Any, Any]", value).items()}
        case str() | int() | float() | None:
            return value
        case _:
            return str(value)
