"""Exports of a sweep: tables of all cells, contact sheets, and a cell's settings as a preset."""

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
"""The most prompts that get a contact sheet."""

_SIDE, _SMALL = 192, 112

_ROW_GROUP = 50_000
"""Rows that are written to a Parquet file at once."""


def preset_text(request: Request) -> str:
    """Format a request's settings, without the seed, as a file for ``--preset``."""
    settings = {name: value for name, value in request.settings.items() if name != SEED}
    return as_toml(Preset(name="", source="", settings=settings))


def write_csv(results: Results, store: Store, path: Path, *, overwrite: bool = False) -> None:
    """Write a row for each cell: its labels, its metrics, and the path of its image in the store.

    Raises:
        InputError: as ``renewing``, which writes the file.
    """
    with renewing(path, overwrite=overwrite) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _columns(results))
        writer.writeheader()
        for row in _rows(results, store):
            writer.writerow({name: _escape_formula(value) for name, value in row.items()})


def write_parquet(results: Results, store: Store, path: Path, *, overwrite: bool = False) -> None:
    """Write the same rows as Parquet.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow
    from pyarrow import parquet

    text, real = pyarrow.string(), pyarrow.float64()
    schema = pyarrow.schema([(name, real if name in results.metrics else text) for name in _columns(results)])
    rows = _rows(results, store)
    with renewing(path, overwrite=overwrite) as aside, parquet.ParquetWriter(aside, schema) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _columns(results: Results) -> list[str]:
    return list(dict.fromkeys([*(axis.name for axis in results.axes), *results.metrics, "key", "picture"]))


def _rows(results: Results, store: Store) -> Iterator[dict[str, Any]]:
    """Yield a row for each cell: labels, metrics, key, and the image's path or None."""
    for places in np.ndindex(results.keys.shape):
        labels = results.labels(places)
        metrics = {
            name: None if np.isnan(values[places]) else float(values[places])
            for name, values in results.metrics.items()
        }
        key = results.key(places)
        picture = str(store.picture(key).relative_to(store.folder)) if results.drawn[places] else None
        yield {**labels, **metrics, "key": key, "picture": picture}


def _escape_formula(value: Any) -> Any:
    """Escape text that spreadsheets would interpret as a formula (OWASP, "CSV injection")."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value


def contact_sheets(results: Results, store: Store) -> Iterator[Image.Image]:
    """Yield a table of images over two axes for each of the first prompts.

    Other axes are fixed at their first value.
    """
    names = [axis.name for axis in results.axes]
    varying = [n for n in reversed(results.setting_axes) if len(results.axes[n].values) > 1]
    seed = [names.index(SEED)] if SEED in names else []
    across, down = (*varying, *seed, None, None)[:2]
    for prompt in range(min(SHEETS, len(results.sweep.prompts))):
        first = [0] * len(names)
        first[names.index(PROMPT)] = prompt
        rows = [
            [_tile(store, results, place, _SIDE) for place in row]
            for row in _places(results, first, across, down)
        ]
        yield picture_table(rows, _labels(results, across), _labels(results, down))


def sample_table(results: Results, store: Store, rows: int) -> Image.Image:
    """Lay out the first prompts (or values of a ``words`` axis) by the values of the last setting."""
    names = [axis.name for axis in results.axes]
    down = names.index("words" if "words" in names else PROMPT)
    across = results.setting_axes[-1]
    places = islice(_places(results, [0] * len(names), across, down), rows)
    pictures = [[_tile(store, results, place, _SMALL) for place in row] for row in places]
    labels = [value.label for value in results.axes[down].values[:rows]]
    return picture_table(pictures, [value.label for value in results.axes[across].values], labels)


def _places(
    results: Results, first: list[int], across: int | None, down: int | None
) -> Iterator[Iterator[tuple[int, ...]]]:
    def vary(start: list[int], axis: int | None) -> Iterator[list[int]]:
        if axis is None:
            yield start
            return
        for place in range(len(results.axes[axis].values)):
            yield [*start[:axis], place, *start[axis + 1 :]]

    return ((tuple(each) for each in vary(row, across)) for row in vary(first, down))


def _labels(results: Results, axis: int | None) -> list[str]:
    if axis is None:
        return [""]
    return [f"{results.axes[axis].name} {value.label}" for value in results.axes[axis].values]


def _tile(store: Store, results: Results, places: tuple[int, ...], side: int) -> Image.Image:
    """Load a cell's image, padded to a square; grey if it is missing."""
    try:
        with open_regular(store.picture(results.key(places))) as file, Image.open(file) as image:
            return ImageOps.pad(image.convert("RGB"), (side, side), color="white")
    except (InputError, OSError):
        return Image.new("RGB", (side, side), "lightgrey")
