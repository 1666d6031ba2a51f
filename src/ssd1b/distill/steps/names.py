"""Names of the methods of step distillation, and which stages of a file have them; no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

METHOD_NAMES = ("guidance", "progressive", "lcm", "tcd", "dmd")
"""See ``methods.METHODS``."""


def split_stages(tables: object) -> tuple[Sequence[Any], Sequence[Any]]:
    """Split a file's stages into those that cut layers, which come first, and those from the first method on.

    Args:
        tables: the value of "stages" in a file. Anything but a list counts as none.
    """
    stages = tables if isinstance(tables, list) else []
    methods = [number for number, each in enumerate(stages) if isinstance(each, Mapping) and "method" in each]
    first = methods[0] if methods else len(stages)
    return stages[:first], stages[first:]
