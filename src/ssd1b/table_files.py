"""Reading TOML and JSON files of settings."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, shown
from ssd1b.files import decode_text, named, read_file

MAX_FILE_BYTES = 256 * 1024

READERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
"""Parsers by file suffix."""


def read_table(path: Path) -> Any:
    """Read a file whose suffix is in ``READERS``.

    Raises:
        InputError: it cannot be read, is too large, or is not valid in its format.
    """
    text = decode_text(read_file(path, most=MAX_FILE_BYTES), named(path))
    try:
        return READERS[path.suffix.lower()](text)
    # Parsers raise subclasses of ValueError; thousands of nested lists exhaust the stack.
    except (ValueError, RecursionError) as error:
        kind = path.suffix[1:].upper()
        raise InputError(f"{named(path)} is not valid {kind}: {parser_reason(error)}") from None


def parser_reason(error: Exception) -> str:
    """Say why a parser of JSON or TOML failed, without advice for the program's authors."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has thousands of digits" if "int_max_str_digits" in str(error) else shown(error)
