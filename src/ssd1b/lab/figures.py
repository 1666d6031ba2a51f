"""Plots of a sweep: curves along an axis, groups of two axes, the Pareto front."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssd1b.lab.axes import number_of
from ssd1b.lab.results import DIVERSITY, EMPTY, PASSES, UNCONVERGED, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 4
"""Panels per row."""

MEANING = {
    "flawless": "share of images that are entirely right and not spoiled",
    "right": "share of images that are entirely right, spoiled or not",
    "clean": "share of images that are not spoiled",
    "material": "share of solids with the right material",
    "clip": "CLIP score",
    "pickscore": "PickScore: predicted human preference",
    DIVERSITY: "distance from images of other seeds, in units of their contrast (thumbnails)",
    UNCONVERGED: "distance from the image with the most steps (levels of 256, thumbnails)",
    PASSES: "UNet passes per image",
    "sharpness": "RMS of the Laplacian of luma (levels of 256)",
    "contrast": "standard deviation of luma (levels of 256)",
    "colourfulness": "Hasler and Süsstrunk, 0 to about 110",
    "saturation": "mean HSV saturation, 0 to 1",
    "clipping": "share of pixels with a channel at 0 or 255",
}
"""Descriptions of metrics."""

_LONGEST_LABEL = 24


def curves(results: Results, place: int, names: Sequence[str]) -> "Figure":
    """Plot metrics along an axis: means with intervals.

    Args:
        results: the sweep's results.
        place: the axis's index in ``results.axes``.
        names: names of the metrics.
    """
    from matplotlib.figure import Figure

    down = -(-len(names) // ACROSS)
    figure = Figure(figsize=(3.2 * min(ACROSS, len(names)), 2.6 * down), layout="constrained")
    panels = [*figure.subplots(down, min(ACROSS, len(names)), squeeze=False).flat]
    for name, panel in zip(names, panels, strict=False):
        _curve(panel, results, place, name)
        panel.set_title(name, fontsize=10)
        panel.set_ylabel(_wrap(MEANING.get(name, "")), fontsize=7)
    for panel in panels[len(names) :]:
        panel.axis("off")
    return figure


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
    panel.set_xticks(across, [_shorten(value.label) for value in values], rotation=30, ha="right", fontsize=7)
    panel.tick_params(axis="y", labelsize=8)
    for label in panel.get_xticklabels():
        label.set_parse_math(False)  # "$" is plain text in prompts


def grouped(results: Results, across: int, series: int, metric: str) -> "Figure":
    """Plot a metric along an axis, with a series for each value of a second axis: means with intervals.

    Args:
        results: the sweep's results.
        across: the first axis's index in ``results.axes``.
        series: the second axis's index, which is larger.
        metric: the metric's name.
    """
    from matplotlib.figure import Figure

    values, kinds = results.axes[across].values, results.axes[series].values
    found = results.estimates(metric, (across, series))
    figure = Figure(figsize=(1.2 * len(values) + 2, 3.2), layout="constrained")
    panel = figure.subplots()
    for number, kind in enumerate(kinds):
        each = found[number :: len(kinds)]
        means, lows, highs = (np.array([getattr(e, part) for e in each]) for part in ("mean", "low", "high"))
        places = np.arange(len(values)) + 0.2 * (number - (len(kinds) - 1) / 2)
        label = f"{results.axes[series].name} prompt: {_shorten(kind.label)}"
        panel.errorbar(places, means, [means - lows, highs - means], fmt="o", capsize=3, label=label)
    panel.set_xticks(range(len(values)), [_shorten(value.label) for value in values], rotation=20, ha="right")
    panel.set_ylabel(_wrap(MEANING.get(metric, metric)), fontsize=8)
    panel.set_ylim(-0.05, 1.05)
    panel.legend(fontsize=8)
    return figure


def pareto(results: Results, metric: str) -> "Figure":
    """Plot each combination of settings by passes and a metric, with the Pareto front."""
    from matplotlib.figure import Figure

    front = np.flatnonzero(results.front(metric))
    figure = Figure(figsize=(7, 4.2 + 0.16 * len(front)), layout="constrained")
    panel = figure.subplots()
    quality = results.estimates(metric, results.setting_axes)
    passes = np.array([each.mean for each in results.estimates(PASSES, results.setting_axes)])
    means = np.array([each.mean for each in quality])
    gaps = [[each.mean - each.low for each in quality], [each.high - each.mean for each in quality]]
    panel.errorbar(passes, means, gaps, fmt="o", markersize=4, alpha=0.5, elinewidth=0.6)
    front = front[np.argsort(passes[front])]
    panel.step(passes[front], means[front], where="post", color="C1")
    places = list(np.ndindex(tuple(len(results.axes[n].values) for n in results.setting_axes)))
    for number, index in enumerate(front, 1):
        labels = [
            f"{results.axes[n].name} {_shorten(results.axes[n].values[place].label)}"
            for n, place in zip(results.setting_axes, places[index], strict=True)
            if len(results.axes[n].values) > 1
        ]
        # Settings would overlap next to their points: those get numbers, the legend explains.
        point = passes[index], means[index]
        panel.plot(*point, "o", color="C1", label=f"{number}: {', '.join(labels)}")
        panel.annotate(str(number), point, (-3, 5), textcoords="offset points", ha="right", fontsize=8)
    legend = figure.legend(loc="outside lower left", fontsize=7, frameon=False, handlelength=1)
    for label in legend.get_texts():
        label.set_parse_math(False)  # "$" is plain text in prompts
    panel.set(xlabel="UNet passes per image", ylabel=metric)
    return figure


def _shorten(label: str) -> str:
    label = label or EMPTY
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 34))
