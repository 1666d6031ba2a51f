"""Numbers in text, wherever people and other programs write them.

``int`` and ``float`` also read "٦٤", "1_000", " 5 ", "+5" and "nan", and refuse 5,000 digits with an error of
their own. Here a number is written in ASCII digits, with a sign only if it is negative.
"""

import math
import re

from ssd1b.errors import InputError, shown

DIGITS = r"[0-9]{1,30}"
"""A whole number without a sign, as a part of regular expressions."""

DECIMAL = rf"(?:{DIGITS}(?:\.[0-9]{{0,30}})?|\.{DIGITS})"
"""A number without sign and exponent, as a part of regular expressions."""

_WHOLE = re.compile(f"-?{DIGITS}")
_NUMBER = re.compile(rf"-?{DECIMAL}(?:[eE][+-]?[0-9]{{1,3}})?")


def whole_number(text: str) -> int:
    """Read a whole number, as "25" or "-1".

    Raises:
        InputError: it is none, or has more than 30 digits.
    """
    if not _WHOLE.fullmatch(text):
        raise InputError(f"{shown(text)} is no whole number in plain digits, as 25")
    return int(text)


def number(text: str) -> float:
    """Read a finite number, as "7.5", "-1" or "1e-05".

    Raises:
        InputError: it is none, or has more than 30 digits on a side of its point.
    """
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise InputError(f"{shown(text)} is no number in plain digits, as 7.5")
    return float(text)
