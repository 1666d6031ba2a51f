"""TOML files of stages: those that cut layers, then those with a method, which distill steps; no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssd1b.errors import unknown
from ssd1b.table_files import read_table


class StageTables(NamedTuple):
    """Contents of a stages file, before validation.

    Attributes:
        train: defaults of all stages' training loops.
        cut: the stages before the first method.
        methods: the others.
    """

    train: Any
    cut: Sequence[Any]
    methods: Sequence[Any]


def read_stage_tables(path: Path) -> StageTables:
    """Read a file of stages.

    Raises:
        InputError: it cannot be read, or has an unknown key.
    """
    table: dict[str, Any] = read_table(path)
    for key in table:
        if key not in ("train", "stages"):
            raise unknown(f"key in {path}", key, ("train", "stages"))
    stages = table.get("stages")
    if not isinstance(stages, list):
        stages = []
    methods = [number for number, each in enumerate(stages) if isinstance(each, Mapping) and "method" in each]
    first = methods[0] if methods else len(stages)
    return StageTables(table.get("train", {}), stages[:first], stages[first:])
