"""Curves and fronts of a sweep, as SVG."""

import io
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ssd1b.lab.axes import number_of
from ssd1b.lab.results import EMPTY, SECONDS, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 4
"""Panels beside each other."""

_LONGEST_LABEL = 24


def curves(results: Results, place: int, meaning: Mapping[str, str]) -> str:
    """Draw what an axis does to each metric: means with their intervals.

    Args:
        results: of the sweep.
        place: of the axis, among ``results.axes``.
        meaning: of metrics, in words, for their panels' axes.
    """
    from matplotlib.figure import Figure

    names = results.told
    down = -(-len(names) // ACROSS)
    figure = Figure(figsize=(3.2 * min(ACROSS, len(names)), 2.6 * down), layout="constrained")
    panels = [*figure.subplots(down, min(ACROSS, len(names)), squeeze=False).flat]
    for name, panel in zip(names, panels, strict=False):
        _curve(panel, results, place, name)
        panel.set_title(name, fontsize=10)
        panel.set_ylabel(_wrapped(meaning.get(name, "")), fontsize=7)
    for panel in panels[len(names) :]:
        panel.axis("off")
    return _svg(figure)


def _curve(panel: "Axes", results: Results, place: int, metric: str) -> None:
    values = results.axes[place].values
    found = results.estimates(metric, (place,))
    means, lows, highs = (
        np.array([getattr(each, part) for each in found]) for part in ("mean", "low", "high")
    )
    numbers = np.array([number_of(value) for value in values], float)
    if not np.isnan(numbers).any():
        order = np.argsort(numbers)
        across = numbers[order]
        panel.plot(across, means[order], marker="o", markersize=3)
        panel.fill_between(across, lows[order], highs[order], alpha=0.25)
        panel.tick_params(labelsize=8)
        return
    across = np.arange(len(values))
    panel.errorbar(across, means, [means - lows, highs - means], fmt="o", capsize=3)
    panel.set_xticks(
        across, [_shortened(value.label) for value in values], rotation=30, ha="right", fontsize=7
    )
    panel.tick_params(axis="y", labelsize=8)
    for label in panel.get_xticklabels():
        label.set_parse_math(False)  # "$" is a letter in prompts


def pareto(results: Results, metric: str) -> str:
    """Draw each combination of settings by its seconds and a metric, with the line that nothing beats."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.subplots()
    quality = results.estimates(metric, results.setting_axes)
    seconds = np.array([each.mean for each in results.estimates(SECONDS, results.setting_axes)])
    means = np.array([each.mean for each in quality])
    gaps = [[each.mean - each.low for each in quality], [each.high - each.mean for each in quality]]
    panel.errorbar(seconds, means, gaps, fmt="o", markersize=4, alpha=0.5, elinewidth=0.6)
    front = np.flatnonzero(results.front(metric))
    front = front[np.argsort(seconds[front])]
    panel.step(seconds[front], means[front], where="post", color="C1")
    panel.plot(seconds[front], means[front], "o", color="C1")
    places = list(np.ndindex(tuple(len(results.axes[n].values) for n in results.setting_axes)))
    for number in front:
        labels = [
            f"{results.axes[n].name} {_shortened(results.axes[n].values[place].label)}"
            for n, place in zip(results.setting_axes, places[number], strict=True)
            if len(results.axes[n].values) > 1
        ]
        panel.annotate(
            ", ".join(labels), (seconds[number], means[number]), (4, 4), textcoords="offset points",
            fontsize=7, parse_math=False,
        )  # fmt: skip
    panel.set(xlabel="seconds a picture", ylabel=metric)
    return _svg(figure)


def _shortened(label: str) -> str:
    label = label or EMPTY
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 34))


def _svg(figure: "Figure") -> str:
    """The figure as an element of an HTML page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "ssd1b"}):  # the same figure is the same text
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
