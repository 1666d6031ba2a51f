"""A sweep's report: one self-contained HTML file.

Prompts, labels and file names are inserted as text, never as markup: the template escapes them, the script
sets them as text, and the content security policy allows only the page's own script and data URIs.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ssd1b.command_line import command_line
from ssd1b.errors import InputError
from ssd1b.evaluate.plots import svg
from ssd1b.evaluate.statistics import Estimate
from ssd1b.files import open_regular
from ssd1b.jobs.store import Store
from ssd1b.lab.export import preset_text
from ssd1b.lab.figures import MEANING, curves, pareto
from ssd1b.lab.results import EMPTY, PASSES, SEED, Results
from ssd1b.lab.sweep import PROMPT
from ssd1b.saving import renewing

MAX_PICTURES = 2000
"""The most images embedded in the page. The others are in the store's folder."""

MAX_ROWS = 200
"""The most rows in the page's table, best first. ``cells.csv`` contains all."""

_SIDE = 512
_TEMPLATE = Path(__file__).parent.parent / "data" / "report"


def write_page(
    results: Results, store: Store, out: Path, *, metric: str | None = None, overwrite: bool = False
) -> None:
    """Write a sweep's report.

    Args:
        results: the sweep's results.
        store: contains its images.
        out: the HTML file. A page that this function wrote earlier is replaced.
        metric: ranks combinations of settings; None uses ``results.quality``.
        overwrite: also replace a file of another origin.

    Raises:
        InputError: no such metric, or the file cannot be written.
    """
    ranked = metric or results.quality
    if ranked is not None:
        results.estimates(ranked, ())
    with renewing(out, overwrite=overwrite) as aside:
        aside.write_text(_page(results, store, ranked), encoding="utf-8")


def _page(results: Results, store: Store, ranked: str | None) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script = (_TEMPLATE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    warnings = []
    if results.missing:
        warnings.append(
            f"This sweep is not finished: {results.missing} of {results.keys.size} cells are missing."
        )
    if results.lost:
        warnings.append(
            f"The images of {results.lost} finished cells were deleted or modified. Their metrics are not "
            "shown; the same ssd1b sweep command generates them again."
        )
    warnings += [f"{count} images failed: {reason}" for reason, count in results.failures.items()]
    cells, embedded = _cells(results, store)
    if embedded < np.count_nonzero(results.drawn):
        warnings.append(
            f"This page contains {embedded} images; the others are in {store.folder / 'pictures'}."
        )
    return environment.get_template("report.html").render(
        title=_title(results),
        summary=_summary(results),
        warnings=warnings,
        style=Markup((_TEMPLATE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        # "<" could end the element that contains the data.
        data=Markup(
            json.dumps({"axes": _axes(results), "cells": cells}, allow_nan=False).replace("<", "\\u003c")
        ),
        figures=[*_figures(results, ranked)],
        table=_table(results, ranked),
        footer=f"ssd1b {version('ssd1b')}. Intervals are 95%, by bootstrap over {_units(results)}.",
    )


def _title(results: Results) -> str:
    names = [axis.name for axis in results.axes if axis.name != PROMPT and len(axis.values) > 1]
    return f"{results.sweep.model}: {', '.join(names)}" if names else results.sweep.model


def _summary(results: Results) -> str:
    prompts = results.sweep.prompts
    subject = f"“{prompts[0]}”" if len(prompts) == 1 else f"{len(prompts)} prompts"
    axes = [
        f"{axis.name} {', '.join(value.label or 'empty' for value in axis.values)}"
        for axis in results.axes
        if axis.name != PROMPT
    ]
    return "; ".join([subject, *axes, f"{results.keys.size} images"])


def _units(results: Results) -> str:
    if results.many_prompts:
        return "prompts"
    return "pairs of prompt and seed, for these prompts only"


def _axes(results: Results) -> list[dict[str, Any]]:
    interest = {PROMPT: 0, SEED: 1}
    return [
        {
            "name": axis.name,
            "values": [value.label or EMPTY for value in axis.values],
            "interest": interest.get(axis.name, 2),
        }
        for axis in results.axes
    ]


def _cells(results: Results, store: Store) -> tuple[list[dict[str, Any] | None], int]:
    """Return the page's data for each cell, and the number of embedded images.

    The data of a finished cell whose image is not embedded is None.
    """
    found: list[dict[str, Any] | None] = []
    embedded = 0
    varying = {PROMPT, *(axis.name for axis in results.axes if len(axis.values) > 1)}
    for places in np.ndindex(results.keys.shape):
        if not results.drawn[places]:
            found.append({"picture": None, "state": "missing"})
            continue
        picture = _embedded(store.picture(results.key(places))) if embedded < MAX_PICTURES else None
        if picture is None:
            found.append(None)
            continue
        embedded += 1
        request = results.sweep.request(places)
        metrics = {
            name: f"{results.metrics[name][places]:.4g}"
            for name in results.known_metrics
            if not np.isnan(results.metrics[name][places])
        }
        labels = [f"{name} {label}" for name, label in results.labels(places).items() if name in varying]
        found.append(
            {
                "picture": picture,
                "labels": labels,
                "command": command_line(request.prompt, {"seed": 0, **request.settings}, model=request.model),
                "preset": preset_text(request),
                "metrics": metrics,
            }
        )
    return found, embedded


def _embedded(path: Path) -> str | None:
    """Encode an image as a data URI at the size that the page shows; None if its file is missing."""
    buffer = io.BytesIO()
    try:
        with open_regular(path) as file, Image.open(file) as image:
            image.thumbnail((_SIDE, _SIDE))
            image.convert("RGB").save(buffer, "WEBP", quality=88)
    except (InputError, OSError):
        return None
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class _Figure(NamedTuple):
    title: str
    hint: str
    svg: str


def _figures(results: Results, ranked: str | None) -> Iterator[_Figure]:
    from markupsafe import Markup

    for place in results.setting_axes:
        if len(results.axes[place].values) > 1:
            averaged = "" if len(results.setting_axes) == 1 else " Other settings are averaged."
            yield _Figure(
                f"Effect of {results.axes[place].name}",
                f"Mean and 95% interval over {_units(results)}.{averaged}",
                Markup(svg(curves(results, place, results.known_metrics))),
            )
    if ranked is not None and PASSES in results.known_metrics and results.front(ranked).size > 1:
        yield _Figure(
            "Quality against cost",
            f"Each point is one combination of settings: {MEANING.get(ranked, ranked)}, against UNet passes "
            "per image. The line is the Pareto front: no other combination is both better and cheaper.",
            Markup(svg(pareto(results, ranked))),
        )


def _table(results: Results, ranked: str | None) -> dict[str, Any]:
    """The table of combinations of settings, the best first."""
    axes = [results.axes[n] for n in results.setting_axes]
    places = list(np.ndindex(tuple(len(axis.values) for axis in axes)))
    found = {name: results.estimates(name, results.setting_axes) for name in results.known_metrics}
    front = results.front(ranked) if ranked is not None else np.zeros(len(places), bool)
    order = np.arange(len(places))
    if ranked is not None:
        order = np.argsort([-each.mean for each in found[ranked]], kind="stable")
    rows = [
        {
            "labels": [
                axis.values[place].label or EMPTY for axis, place in zip(axes, places[row], strict=True)
            ],
            "estimates": [_table_cell(each[row]) for each in found.values()],
            "front": bool(front[row]),
        }
        for row in order[:MAX_ROWS]
    ]
    more = f" The best {MAX_ROWS} of {len(places)}; all are in cells.csv." if len(places) > MAX_ROWS else ""
    marked = (
        " Highlighted rows are on the Pareto front: no other is both better and cheaper."
        if ranked is not None
        else ""
    )
    return {
        "headings": [*(axis.name for axis in axes), *found],
        "rows": rows,
        "hint": f"Means with 95% intervals; click a heading to sort.{marked}{more}",
    }


def _table_cell(each: Estimate) -> Mapping[str, Any]:
    if each.size == 0:
        return {"mean": "", "text": "–", "interval": ""}
    return {"mean": each.mean, "text": f"{each.mean:.3g}", "interval": f"{each.low:.3g} to {each.high:.3g}"}
