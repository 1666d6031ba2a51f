"""Styles: named texts around a prompt, from AUTOMATIC1111's ``styles.csv`` and Fooocus' JSON; no torch.

Source: AUTOMATIC1111 ``modules/styles.py``; Fooocus ``sdxl_styles/*.json``.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ssd1b.errors import InputError, shown, unknown
from ssd1b.files import decode_text, named, read_file
from ssd1b.table_files import load_json
from ssd1b.validation import Name, Text, parse, validated

_MAX_FILE_BYTES = 16 * 2**20
_PLACE = "{prompt}"


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A style.

    Attributes:
        name: its name.
        prompt: text with ``{prompt}`` where the prompt goes; without it, it is added after a comma.
        negative_prompt: the same for the negative prompt.
    """

    name: Name
    prompt: Text = ""
    negative_prompt: Text = ""


def read_styles(path: str) -> dict[str, Style]:
    """Read the styles in a file by name.

    Args:
        path: a CSV file with the columns name, prompt and negative_prompt, or a JSON file with a list of
            objects that have these fields.

    Raises:
        InputError: the file cannot be read or has other content.
    """
    where = named(path)
    text = decode_text(read_file(path, most=_MAX_FILE_BYTES), where)
    rows = _json_rows(text, where) if path.lower().endswith(".json") else _csv_rows(text, where)
    found: dict[str, Style] = {}
    for number, row in enumerate(rows, 1):
        known = {key: row.get(key) or "" for key in ("name", "prompt", "negative_prompt")}
        if any(known.values()):
            style = parse(Style, known, f"style {number} of {where}")
            found[style.name] = style
    return found


def _json_rows(text: str, where: str) -> list[Mapping[str, Any]]:
    try:
        rows = load_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({shown(error)})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{where}: expected a list of objects with name, prompt and negative_prompt")
    return rows


def _csv_rows(text: str, where: str) -> list[Mapping[str, Any]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows: list[Mapping[str, Any]] = [*reader]
    except csv.Error as error:
        raise InputError(f"{where}: not valid CSV ({shown(error)})") from None
    if not {"name", "prompt"} <= {*(reader.fieldnames or ())}:
        raise InputError(f"{where}: the first line must name the columns name, prompt and negative_prompt")
    return rows


def apply_styles(
    prompt: str, negative: str | None, names: Iterable[str], styles: Mapping[str, Style]
) -> tuple[str, str | None]:
    """Put styles around a prompt and a negative prompt, one after the other.

    Raises:
        InputError: there is no style of a name.
    """
    for name in names:
        if name not in styles:
            raise unknown("style", name, styles)
        style = styles[name]
        prompt = _around(prompt, style.prompt)
        if style.negative_prompt:
            negative = _around(negative or "", style.negative_prompt)
    return prompt, negative


def _around(text: str, style: str) -> str:
    if _PLACE in style:
        return style.replace(_PLACE, text)
    return ", ".join(each for each in (text.strip(), style.strip()) if each)
