"""Merging adapters into weights: in float32 from the original weights, and rounded once.

Adapters are never subtracted. To take one off, the original weights are read again.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssd1b.adapters.kinds import bias_change, changes_bias, changes_weight, weight_change
from ssd1b.adapters.matching import Match, match
from ssd1b.adapters.names import PARTS
from ssd1b.adapters.reading import AdapterFile, ModuleWeights, open_adapter
from ssd1b.errors import InputError
from ssd1b.files import named
from ssd1b.inputs import InputFile
from ssd1b.layouts import ModelLayout
from ssd1b.loras import MAX_BYTES, MAX_CONFIG_BYTES, Lora


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


def merge(name: str, weight: Tensor, changes: Sequence[Change]) -> Tensor:
    """Add changes to a tensor.

    Args:
        name: the tensor's name, which ends with "weight" or "bias".
        weight: the original tensor.
        changes: what to add.

    Returns:
        A new tensor, float32, on the weight's device.

    Raises:
        InputError: an adapter holds NaN or infinity.
    """
    original = weight.float()
    result = original.clone()
    change = bias_change if name.endswith(".bias") else None
    for strength, adapter, weights in changes:
        tensors = adapter.tensors(weights, original.device)
        if change is None:
            added = weight_change(weights.kind, original, tensors, weights.numbers)
        else:
            added = change(original, tensors, weights.numbers)
        if added is not None:
            result.add_(added, alpha=strength)
    if not torch.isfinite(result).all():
        raise InputError(f"{named(changes[0].adapter.path)}: {name} becomes NaN or infinite with it")
    return result
