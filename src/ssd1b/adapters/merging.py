"""Merging adapters into weights: in float32 from the original weights, and rounded once.

Adapters are never subtracted. To take one off, the original weights are read again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssd1b.adapters.kinds import (
    bias_change,
    changes_bias,
    changes_weight,
    is_by_row,
    rows_of,
    weight_change,
)
from ssd1b.adapters.matching import Match, match
from ssd1b.adapters.names import PARTS
from ssd1b.adapters.reading import AdapterFile, ModuleWeights, open_adapter
from ssd1b.errors import InputError
from ssd1b.files import named
from ssd1b.inputs import InputFile
from ssd1b.layouts import ModelLayout
from ssd1b.loras import MAX_BYTES, MAX_CONFIG_BYTES, Lora
from ssd1b.weights.files import first_few, is_finite


class Change(NamedTuple):
    """A change of one tensor.

    Attributes:
        strength: what it is multiplied by.
        adapter: the file.
        weights: the tensors in the file.
    """

    strength: float
    adapter: AdapterFile
    weights: ModuleWeights


Changes = Mapping[str, Sequence[Change]]
"""The changes of each tensor of a network, by the tensor's name."""


def find_changes(loras: Sequence[Lora], layout: ModelLayout) -> dict[str, Changes]:
    """Find what adapters change in a model; only headers are read.

    Args:
        loras: the files and their strengths.
        layout: the model's layout.

    Returns:
        The changes of each of ``names.PARTS``.

    Raises:
        InputError: a file has changed, is no adapter, or does not fit the model.
    """
    found: dict[str, dict[str, list[Change]]] = {part: {} for part in PARTS}
    for lora in loras:
        matched = match_file(lora, layout)
        for (part, name), weights in matched.targets.items():
            strength = lora.unet if part == "unet" else lora.text
            if strength:
                for leaf, changed in (("weight", changes_weight), ("bias", changes_bias)):
                    if changed(weights.roles):
                        changes = found[part].setdefault(f"{name}.{leaf}", [])
                        changes.append(Change(strength, matched.adapter, weights))
    return dict(found)


def match_file(lora: Lora, layout: ModelLayout) -> Match:
    """Open an adapter and match it to a model; kept for the next call, unless the file changes.

    Raises:
        InputError: as ``find_changes``.
    """
    files = [each for each in (lora.file, lora.config) if each is not None]
    return _match_file(lora.file, lora.file.path, lora.config, tuple(map(_stamp, files)), layout)


def fit_advice(loras: Iterable[Lora], layout: ModelLayout, model: str) -> list[str]:
    """Write a line for each adapter that does not fit a model as a whole; only headers are read.

    Keys may match nothing, or the names may be those of a smaller model.

    Args:
        loras: the adapters. Nothing is said of one that cannot be read or fits no module: using it is an
            error.
        layout: the model's layout.
        model: its name, for the lines.
    """
    lines: dict[str, None] = {}  # a file may be used twice, with different strengths
    for lora in loras:
        files = [each for each in (lora.file, lora.config) if each is not None]
        stamps = tuple(map(_stamp, files))
        for advice in _advice(
            *(each.path for each in files), stamps=stamps, layout=layout, model=named(model)
        ):
            lines[f"lora {named(lora.name)}: {advice}"] = None
    return [*lines]


@lru_cache(maxsize=1024)
def _advice(
    file: str,
    config: str | None = None,
    *,
    stamps: tuple[tuple[int, int] | None, ...],
    layout: ModelLayout,
    model: str,
) -> list[str]:
    lines: list[str] = []
    try:
        found = match(open_adapter(Path(file), None if config is None else Path(config)), layout)
    except InputError:
        return lines
    if unknown := found.unknown:
        lines.append(
            f"{len(unknown)} of {found.adapter.key_count} keys match nothing in {model}, such as "
            f"{first_few([next(iter(unknown))])}: see ssd1b inspect"
        )
    return lines


def _stamp(file: InputFile) -> tuple[int, int] | None:
    try:
        status = Path(file.path).stat()
    except OSError:  # reported by ``verified``
        return None
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)
def _match_file(
    file: InputFile,
    path: str,
    config: InputFile | None,
    stamps: tuple[tuple[int, int] | None, ...],
    layout: ModelLayout,
) -> Match:
    return match(open_lora(Lora(file=file, config=config)), layout)


def open_lora(lora: Lora) -> AdapterFile:
    """Open an adapter's file, after checking that it is still the same.

    Raises:
        InputError: as ``find_changes``.
    """
    config = None if lora.config is None else lora.config.verified(most=MAX_CONFIG_BYTES)
    return open_adapter(lora.file.verified(most=MAX_BYTES), config)


_BLOCK = 2**18
"""Numbers of a weight that are merged at a time on a CPU: a megabyte in float32, which stays in the cache."""


def merge(name: str, weight: Tensor, changes: Sequence[Change], dtype: torch.dtype = torch.float32) -> Tensor:
    """Add changes to a tensor in float32, and round the sum once.

    Args:
        name: the tensor's name, which ends with "weight" or "bias".
        weight: the original tensor.
        changes: what to add.
        dtype: number format of the result.

    Returns:
        A new tensor on the weight's device.

    Raises:
        InputError: an adapter holds NaN or infinity, or the sum overflows.
    """
    given = [(each, each.adapter.tensors(each.weights, weight.device)) for each in changes]
    result = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for rows in _blocks(name, weight, changes):
        original = weight[rows].float()
        merged = original
        for change, tensors in given:
            if (added := _added(name, original, change, tensors, rows)) is not None:
                merged = torch.add(merged, added, alpha=change.strength)
        result[rows] = merged
        if not is_finite(result[rows]):
            where = f"{named(changes[0].adapter.path)}: {name}"
            if is_finite(merged):
                raise InputError(f"{where} overflows in {dtype} with it; use bfloat16")
            raise InputError(f"{where} becomes NaN or infinite with it")
    return result


def _blocks(name: str, weight: Tensor, changes: Sequence[Change]) -> Iterator[slice]:
    """Divide a tensor into blocks of rows, if each change can be computed that way and it saves time."""
    rows = len(weight)
    by_row = all(is_by_row(each.weights.kind, each.weights.roles) for each in changes)
    if by_row and weight.device.type == "cpu" and not name.endswith(".bias"):
        rows = max(1, _BLOCK * rows // max(1, weight.numel()))
    for first in range(0, len(weight), rows):
        yield slice(first, first + rows)


def _added(
    name: str, original: Tensor, change: Change, tensors: Mapping[str, Tensor], rows: slice
) -> Tensor | None:
    kind, numbers = change.weights.kind, change.weights.numbers
    if name.endswith(".bias"):
        return bias_change(original, tensors, numbers)
    return weight_change(kind, original, rows_of(kind, tensors, rows), numbers)
