"""Plain text in columns."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssd1b.errors import printable

if TYPE_CHECKING:
    from ssd1b.evaluate.statistics import Estimate


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lay out rows in columns two spaces apart; columns whose numbers are in ``right`` are right-aligned.

    Control characters in cells, which may come from files, are escaped.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def json_line(facts: object) -> str:
    """Write facts as a line of JSON in printable ASCII."""
    return json.dumps(facts).replace("\x7f", "\\u007f")


def percent(value: "Estimate") -> str:
    """Write a share with its interval: "97.5 (96.1 to 98.7)"; a dash if there are no values."""
    if value.size == 0:
        return "-"
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"
