"""Files of settings: TOML and JSON."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError
from ssd1b.files import decode_text, named, read_file

MAX_FILE_BYTES = 256 * 1024

READERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
"""Formats by the file's suffix."""


def read_table(path: Path) -> Any:
    """Read a file in one of the formats of ``READERS``.

    Raises:
        InputError: it cannot be read, is too large, or is not in the format that its suffix says.
    """
    text = decode_text(read_file(path, most=MAX_FILE_BYTES), named(path))
    try:
        return READERS[path.suffix.lower()](text)
    # Readers raise kinds of ValueError; thousands of nested lists exhaust the stack.
    except (ValueError, RecursionError) as error:
        reason = "a number has thousands of digits" if "int_max_str_digits" in str(error) else error
        raise InputError(f"{named(path)} is no {path.suffix[1:].upper()}: {reason}") from None
