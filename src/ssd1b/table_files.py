"""Reading TOML and JSON files of settings."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, shown
from ssd1b.files import decode_text, named, read_file

MAX_FILE_BYTES = 256 * 1024


def load_json(text: str) -> Any:
    """Parse JSON as ``json.loads``, but no object with a key twice, of which it would drop the first.

    Raises:
        ValueError: the text is not JSON, or has an object with a key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict[str, Any]()
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is there twice")
        found[key] = value
    return found


READERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": load_json}
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
