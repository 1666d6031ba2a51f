"""Plain text in columns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssd1b.evaluate.statistics import Estimate


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lay out rows in columns two spaces apart; the columns numbered in ``right`` end flush."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def percent(value: "Estimate") -> str:
    """Write a share with its interval: "97.5 (96.1 to 98.7)"; a dash where nothing was asked."""
    if value.size == 0:
        return "-"
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def byte_size(count: int) -> str:
    """Write a number of bytes in the decimal units of disks and downloads: "5.14 GB"."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"
