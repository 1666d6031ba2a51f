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
"""Panels in a row."""

MEANING = {
    "flawless": "share of pictures in which everything is as the caption says, and nothing spoiled",
    "right": "share of pictures in which everything is as the caption says, spoiled or not",
    "clean": "share of pictures that are not spoiled",
    "material": "share of solids whose material is as the caption says",
    "clip": "CLIP score",
    "pickscore": "PickScore: what people would choose",
    DIVERSITY: "distance from the pictures of other seeds, over their contrast (on thumbnails)",
    UNCONVERGED: "distance from the picture with the most steps (levels of 256, on thumbnails)",
    PASSES: "of the UNet, for one picture",
    "sharpness": "of edges and textures (levels of 256)",
    "contrast": "spread of brightness (levels of 256)",
    "colourfulness": "Hasler and Süsstrunk's, 0 to about 110",
    "saturation": "of colours, 0 to 1",
    "clipping": "share of pixels at the end of their range, as too much guidance makes them",
}
"""Metrics in words."""

_LONGEST_LABEL = 24


def curves(results: Results, place: int, names: Sequence[str]) -> "Figure":
    """Plot metrics along an axis: means with intervals.

    Args:
        results: of the sweep.
        place: the axis's index in ``results.axes``.
        names: of the metrics.
    """
    from matplotlib.figure import Figure

    down = -(-len(names) // ACROSS)
    figure = Figure(figsize=(3.2 * min(ACROSS, len(names)), 2.6 * down), layout="constrained")
    panels = [*figure.subplots(down, min(ACROSS, len(names)), squeeze=False).flat]
    for name, panel in zip(names, panels, strict=False):
        _curve(panel, results, place, name)
        panel.set_title(name, fontsize=10)
        panel.set_ylabel(_wrapped(MEANING.get(name, "")), fontsize=7)
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
    panel.set_xticks(
        across, [_shortened(value.label) for value in values], rotation=30, ha="right", fontsize=7
    )
    panel.tick_params(axis="y", labelsize=8)
    for label in panel.get_xticklabels():
        label.set_parse_math(False)  # "$" is plain text in prompts


def grouped(results: Results, across: int, series: int, metric: str) -> "Figure":
    """Plot a metric along an axis, with a series for each value of a second axis: means with intervals.

    Args:
        results: of the sweep.
        across: the first axis's index in ``results.axes``.
        series: the second axis's, which is larger.
        metric: its name.
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
        label = f"{results.axes[series].name} prompt: {_shortened(kind.label)}"
        panel.errorbar(places, means, [means - lows, highs - means], fmt="o", capsize=3, label=label)
    panel.set_xticks(
        range(len(values)), [_shortened(value.label) for value in values], rotation=20, ha="right"
    )
    panel.set_ylabel(_wrapped(MEANING.get(metric, metric)), fontsize=8)
    panel.set_ylim(-0.05, 1.05)
    panel.legend(fontsize=8)
    return figure


def pareto(results: Results, metric: str) -> "Figure":
    """Plot each combination of settings by its passes and a metric, with the Pareto front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.subplots()
    quality = results.estimates(metric, results.setting_axes)
    passes = np.array([each.mean for each in results.estimates(PASSES, results.setting_axes)])
    means = np.array([each.mean for each in quality])
    gaps = [[each.mean - each.low for each in quality], [each.high - each.mean for each in quality]]
    panel.errorbar(passes, means, gaps, fmt="o", markersize=4, alpha=0.5, elinewidth=0.6)
    front = np.flatnonzero(results.front(metric))
    front = front[np.argsort(passes[front])]
    panel.step(passes[front], means[front], where="post", color="C1")
    panel.plot(passes[front], means[front], "o", color="C1")
    places = list(np.ndindex(tuple(len(results.axes[n].values) for n in results.setting_axes)))
    for number in front:
        labels = [
            f"{results.axes[n].name} {_shortened(results.axes[n].values[place].label)}"
            for n, place in zip(results.setting_axes, places[number], strict=True)
            if len(results.axes[n].values) > 1
        ]
        panel.annotate(
            ", ".join(labels), (passes[number], means[number]), (4, 4), textcoords="offset points",
            fontsize=7, parse_math=False,
        )  # fmt: skip
    panel.set(xlabel="passes of the UNet, for one picture", ylabel=metric)
    return figure


def _shortened(label: str) -> str:
    label = label or EMPTY
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 34))
