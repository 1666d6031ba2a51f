"""Compare the recorded configuration of a run with the one it is resumed with."""

from collections.abc import Mapping
from typing import Any, cast

from ssd1b.errors import shown

_NAMED, _WIDTH = 3, 60
"""Most settings that a message names, and most characters of a value there."""


def differences(given: Mapping[str, Any], recorded: Mapping[str, Any], where: str) -> str | None:
    """Say which settings differ from the recorded ones; None if none does.

    Args:
        given: settings and tables of settings, as JSON has them.
        recorded: likewise; other entries than those of ``given`` are passed over.
        where: what was recorded, such as "the run in out".
    """
    ours, theirs = dict(_flat(given)), dict(_flat({name: recorded.get(name) for name in given}))
    other = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    if not other:
        return None
    first = [f"{name} is {_said(ours, name)}, {where} has {_said(theirs, name)}" for name in other[:_NAMED]]
    return "; ".join([*first, *([f"and {len(other) - _NAMED} more"] if len(other) > _NAMED else [])])


def _said(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return "none" if value is None else shown(value, _WIDTH)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """List values by path, such as "stages.2.train.steps"; tables and lists of tables are entered."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        inside = value
        if isinstance(value, list) and all(isinstance(each, Mapping) for each in cast(list[Any], value)):
            inside = {str(number): each for number, each in enumerate(cast(list[Any], value), 1)}
        if isinstance(inside, Mapping) and inside:
            found += _flat(cast(Mapping[str, Any], inside), f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found
