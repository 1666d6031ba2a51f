"""Names of the methods of step distillation, and how a file of its stages is told from others; no torch."""

from collections.abc import Mapping
from typing import Any

METHOD_NAMES = ("guidance", "progressive", "lcm", "tcd", "dmd")
"""See ``methods.METHODS``."""


def is_step_file(table: Mapping[str, Any]) -> bool:
    """Return whether a table of stages is of a step distillation: one of its stages has a method."""
    stages = table.get("stages")
    return isinstance(stages, list) and any(isinstance(each, Mapping) and "method" in each for each in stages)
