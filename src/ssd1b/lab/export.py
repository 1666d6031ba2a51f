"""Exports of a sweep: tables of all cells, contact sheets, the preset that draws a cell again."""

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ssd1b.errors import InputError
from ssd1b.evaluate.sheets import picture_table
from ssd1b.files import open_regular
from ssd1b.jobs.store import Store
from ssd1b.lab.results import SEED, Results
from ssd1b.lab.sweep import PROMPT, Request
from ssd1b.presets import as_toml
from ssd1b.saving import renewing
from ssd1b.settings import Preset

SHEETS = 8
"""Number of prompts with a contact sheet."""

_SIDE, _SMALL = 192, 112


def preset_text(request: Request) -> str:
    """A picture's settings as the content of a file for ``--preset``, without the seed."""
    settings = {name: value for name, value in request.settings.items() if name != SEED}
    return as_toml(Preset(name="", source="", settings=settings))


def write_csv(results: Results, store: Store, path: Path, *, overwrite: bool = False) -> None:
    """Write a row for each cell: its labels, its metrics, and the path of its picture in the store.

    Raises:
        InputError: as ``renewing``, which writes the file.
    """
    rows = list(_rows(results, store))
    with renewing(path, overwrite=overwrite) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)


def write_parquet(results: Results, store: Store, path: Path, *, overwrite: bool = False) -> None:
    """Write the same rows as Parquet.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow
    from pyarrow import parquet

    with renewing(path, overwrite=overwrite) as aside:
        parquet.write_table(pyarrow.Table.from_pylist(list(_rows(results, store))), aside)


def _rows(results: Results, store: Store) -> Iterator[dict[str, Any]]:
    """A row for each cell: labels, metrics, key, and the picture's path, None if it is not drawn."""
    for places in np.ndindex(results.keys.shape):
        labels = results.labels(places)
        metrics = {
            name: None if np.isnan(values[places]) else float(values[places])
            for name, values in results.metrics.items()
        }
        key = results.key(places)
        picture = str(store.picture(key).relative_to(store.folder)) if results.drawn[places] else None
        yield {**labels, **metrics, "key": key, "picture": picture}


def _inert(value: Any) -> Any:
    """Escape a text that spreadsheets would take for a formula (OWASP, "CSV injection")."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value


def contact_sheets(results: Results, store: Store) -> Iterator[Image.Image]:
    """Give a table of pictures over two axes for each of the first prompts.

    Other axes have their first value.
    """
    names = [axis.name for axis in results.axes]
    varying = [n for n in reversed(results.setting_axes) if len(results.axes[n].values) > 1]
    shown = [*varying, *([names.index(SEED)] if SEED in names else [])][:2]
    across, down = (*shown, None, None)[:2]
    for prompt in range(min(SHEETS, len(results.sweep.prompts))):
        first = [0] * len(names)
        first[names.index(PROMPT)] = prompt
        rows = [
            [_shown(store, results, place, _SIDE) for place in row]
            for row in _places(results, first, across, down)
        ]
        yield picture_table(rows, _labels(results, across), _labels(results, down))


def strip(results: Results, store: Store, rows: int) -> Image.Image:
    """A table of the first prompts, or the first words of an axis of words, by the last setting's values."""
    names = [axis.name for axis in results.axes]
    down = names.index("words" if "words" in names else PROMPT)
    across = results.setting_axes[-1]
    places = islice(_places(results, [0] * len(names), across, down), rows)
    pictures = [[_shown(store, results, place, _SMALL) for place in row] for row in places]
    labels = [value.label for value in results.axes[down].values[:rows]]
    return picture_table(pictures, [value.label for value in results.axes[across].values], labels)


def _places(
    results: Results, first: list[int], across: int | None, down: int | None
) -> Iterator[Iterator[tuple[int, ...]]]:
    def moved(start: list[int], axis: int | None) -> Iterator[list[int]]:
        if axis is None:
            yield start
            return
        for place in range(len(results.axes[axis].values)):
            yield [*start[:axis], place, *start[axis + 1 :]]

    return ((tuple(each) for each in moved(row, across)) for row in moved(first, down))


def _labels(results: Results, axis: int | None) -> list[str]:
    if axis is None:
        return [""]
    return [f"{results.axes[axis].name} {value.label}" for value in results.axes[axis].values]


def _shown(store: Store, results: Results, places: tuple[int, ...], side: int) -> Image.Image:
    """A cell's picture, padded to a square; grey if it is missing."""
    try:
        with open_regular(store.picture(results.key(places))) as file, Image.open(file) as image:
            return ImageOps.pad(image.convert("RGB"), (side, side), color="white")
    except (InputError, OSError):
        return Image.new("RGB", (side, side), "lightgrey")
