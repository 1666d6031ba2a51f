"""Numbers from users and other programs, and for them.

``int`` and ``float`` also accept "٦٤", "1_000", " 5 ", "+5" and "nan", and reject 5,000 digits with another
error. Here a number consists of ASCII digits, with a sign only if it is negative.
"""

import math
import re

from ssd1b.errors import InputError, shown

DIGITS = r"[0-9]{1,30}"
"""Regular expression of a whole number without a sign."""

DECIMAL = rf"(?:{DIGITS}(?:\.[0-9]{{0,30}})?|\.{DIGITS})"
"""Regular expression of a number without sign and exponent."""

_WHOLE = re.compile(f"-?{DIGITS}")
_NUMBER = re.compile(rf"-?{DECIMAL}(?:[eE][+-]?[0-9]{{1,3}})?")


def whole_number(text: str) -> int:
    """Parse a whole number, such as "25" or "-1".

    Raises:
        InputError: the text is something else, or has more than 30 digits.
    """
    if not _WHOLE.fullmatch(text):
        raise InputError(f"{shown(text)} is not a whole number in plain digits, such as 25")
    return int(text)


def number(text: str) -> float:
    """Parse a finite number, such as "7.5", "-1" or "1e-05".

    Raises:
        InputError: the text is something else, or has more than 30 digits before or after the point.
    """
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise InputError(f"{shown(text)} is not a number in plain digits, such as 7.5")
    return float(text)


def counted(count: int | float, unit: str) -> str:
    """Write a number of things: "1 row", "2 rows", "0.5 GPUs"."""
    text = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{text} {unit}{'s' * (count != 1)}"


def byte_size(count: int) -> str:
    """Write a number of bytes in the decimal units of disks and downloads: "5.14 GB"."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """Write a time in the largest unit of which it has two: "36 hours", "3.5 days"."""
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    name, size = next((each for each in units if seconds >= 2 * each[1]), units[-1])
    count = seconds / size
    return f"{count:,.0f} {name}" if count >= 100 else f"{count:.3g} {name}"
