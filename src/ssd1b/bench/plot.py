"""Plot of benchmark results."""

from collections.abc import Mapping, Sequence
from typing import Any

from ssd1b.evaluate.plots import svg


def plot(tables: Sequence[Mapping[str, Any]]) -> str:
    """Plot seconds against image size as SVG: a panel per part, a line per engine and layout.

    Args:
        tables: results, in the format that ``ssd1b bench --json`` prints.
    """
    from matplotlib.figure import Figure

    parts = list(dict.fromkeys(table["part"] for table in tables))
    figure = Figure(figsize=(5.5 * len(parts), 4), layout="constrained")
    for part, panel in zip(parts, figure.subplots(1, len(parts), squeeze=False).flat, strict=True):
        lines: dict[str, list[tuple[int, float, float, float]]] = {}
        for table in (each for each in tables if each["part"] == part):
            for row in table["rows"]:
                name = f"{table['layout']}, {row['engine']}, {row['dtype']}"
                values = (table["latent"], row["seconds"], row["low"], row["high"])
                lines.setdefault(name, []).append(values)
        for name, points in lines.items():
            sides, middle, low, high = map(list, zip(*sorted(points), strict=True))
            errors = [[m - each for m, each in zip(middle, low, strict=True)],
                      [each - m for m, each in zip(middle, high, strict=True)]]  # fmt: skip
            panel.errorbar(sides, middle, errors, marker="o", markersize=4, capsize=3, label=name)
        ticks = sorted({table["latent"] for table in tables if table["part"] == part})
        panel.set_xticks(ticks, [f"{side}x{side}" for side in ticks])
        panel.set_xlabel("latent size, an eighth of the image's")
        panel.set_ylabel("seconds per call: median and range")
        panel.set_ylim(bottom=0)
        panel.set_title(part)
        panel.legend(fontsize=8)
    return svg(figure)
