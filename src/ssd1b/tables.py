"""Files of settings, and strict tables: to frozen dataclasses, an unknown key names the nearest known one."""

import json
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from ssd1b.errors import InputError, shown, unknown
from ssd1b.files import named, read_file, text_of

T = TypeVar("T")

MAX_FILE_BYTES = 256 * 1024

_PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


READERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
"""Formats by the file's suffix."""


def read_table(path: Path) -> Any:
    """Read a file in one of the formats of ``READERS``.

    Raises:
        InputError: it cannot be read, is too large, or is not in the format that its suffix says.
    """
    text = text_of(read_file(path, most=MAX_FILE_BYTES), named(path))
    try:
        return READERS[path.suffix.lower()](text)
    # Readers raise kinds of ValueError; thousands of nested lists exhaust the stack.
    except (ValueError, RecursionError) as error:
        reason = "a number has thousands of digits" if "int_max_str_digits" in str(error) else error
        raise InputError(f"{named(path)} is no {path.suffix[1:].upper()}: {reason}") from None


def checked(kind: type, table: object, where: str) -> dict[str, Any]:
    """Check a table's keys and values against a dataclass's fields; lists become tuples.

    Args:
        kind: the dataclass; its fields are numbers, texts, booleans, mappings, tuples and unions of these.
        table: as TOML gives it; not every field need be there.
        where: names the table in errors.

    Raises:
        InputError: an unknown key, or a value of another type than the field's.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where} must be a table, got {shown(table)}")
    # Not get_type_hints, which says nothing of classes that check their fields themselves.
    hints = {field.name: field.type for field in fields(kind)}
    names = list(hints)
    found = {}
    for name, value in table.items():
        if name not in names:
            raise unknown(f"key in {where}", name, names)
        value = _frozen(value)
        if not _fits(value, hints[name]):
            raise InputError(f"{name} in {where} must be {_words(hints[name])}, got {shown(value)}")
        found[name] = _as_floats(value, hints[name])
    return found


def made(kind: type[T], table: object, where: str) -> T:
    """Build a dataclass of a table.

    Raises:
        InputError: as ``checked``; or a required key is missing, or the dataclass refuses a value.
    """
    found = checked(kind, table, where)
    for field in fields(kind):  # type: ignore[arg-type]
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in found:
            raise InputError(f"{where} lacks the key {field.name!r}")
    try:
        return kind(**found)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return {name: _frozen(each) for name, each in value.items()}
    return value


def _as_floats(value: Any, hint: Any) -> Any:
    """Turn whole numbers into floats where the field is one: people write 1 for 1.0."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is tuple and isinstance(value, tuple):
        return tuple(_as_floats(each, arguments[0]) for each in value)
    kinds = arguments if origin in (Union, UnionType) else (origin,)
    return float(value) if isinstance(value, int) and float in kinds and int not in kinds else value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[1:] == (...,):
            return all(_fits(each, arguments[0]) for each in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(each, arguments[1]) for each in value.values())
    if origin in (int, float):  # true is a number to Python, but not to people
        whole = isinstance(value, int) and not isinstance(value, bool)
        if origin is int:
            return whole
        # Comparing works for whole numbers that no float can hold, and is false for NaN.
        return (whole or isinstance(value, float)) and abs(value) <= sys.float_info.max
    return isinstance(value, origin)


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in arguments if each is not NoneType)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        number = "" if arguments[1:] == (...,) else f"{len(arguments)} of "
        return f"a list, {number}{_words(arguments[0])} each"
    if issubclass(origin, Mapping):
        return f"a table, {_words(arguments[1])} each"
    if is_dataclass(origin):
        return "a table"
    return _PLAIN.get(origin, str(origin))
