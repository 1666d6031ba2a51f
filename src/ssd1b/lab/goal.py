"""The goal of tuning: a weighted sum of metrics to maximise, and bounds that must hold."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np

from ssd1b.errors import InputError, shown, unknown
from ssd1b.numerals import DECIMAL

_CAPTION_METRICS = (
    "flawless", "right", "shape", "color", "size", "material", "number", "background", "relation",
)  # fmt: skip
_JUDGE = "a model of Tabletop, its own size, and prompts that are complete captions"

NEEDS: Mapping[str, str] = MappingProxyType({
    **dict.fromkeys(_CAPTION_METRICS, _JUDGE),
    "clean": "a model of Tabletop",
    "clip": "a model with an image encoder, or openai/clip-vit-large-patch14 in the hub's cache",
    "pickscore": "yuvalkirstain/PickScore_v1 in the hub's cache",
    "diversity": "several seeds",
    "unconverged": "several numbers of steps",
})  # fmt: skip
"""Prerequisites of metrics that are not always available."""

LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType({
    **dict.fromkeys((*_CAPTION_METRICS, "clean", "saturation", "clipping"), (0.0, 1.0)),
    **dict.fromkeys(("clip", "pickscore"), (-100.0, 100.0)),
    "sharpness": (0.0, 2040.0),
    "contrast": (0.0, 127.5),
    "colourfulness": (0.0, 400.0),
    "passes": (0.0, 1e6),
    "diversity": (0.0, 1e6),
    "unconverged": (0.0, 255.0),
})  # fmt: skip
"""The range of each metric. A goal can name these metrics and no others."""

_MAX_WEIGHT = 1000
"""Larger weights would cost the other terms of a sum the digits in which settings differ."""

_WEIGHTED = re.compile(rf"(?:(-?{DECIMAL})\s*\*\s*)?([a-z_]+)")
_GUARD = re.compile(rf"\s*([a-z_]+)\s*(<=|>=)\s*([+-]?{DECIMAL}(?:e-?[0-9]{{1,2}})?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A bound on the mean of a metric."""

    metric: str
    at_most: bool
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{'<=' if self.at_most else '>='}{self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A weighted sum of metrics to maximise, under bounds.

    Attributes:
        weights: the weight of each metric in the sum.
        guards: bounds that must hold. A metric alone can reward what nobody wants: metrics learned from human
            preferences favour oversaturated images.
    """

    weights: Mapping[str, float]
    guards: tuple[Bound, ...] = ()

    def score(self, metrics: Mapping[str, float]) -> float:
        """Score one image.

        Raises:
            InputError: a metric was not measured.
        """
        return sum(weight * _value(metrics, name) for name, weight in self.weights.items())

    def violations(self, images: Sequence[Mapping[str, float]]) -> list[str]:
        """Describe the guards that do not hold for the mean of some images.

        Raises:
            InputError: a metric was not measured.
        """
        found = []
        for guard in self.guards:
            mean = float(np.mean([_value(each, guard.metric) for each in images]))
            if (mean > guard.bound) if guard.at_most else (mean < guard.bound):
                found.append(f"{guard.metric} is {mean:.3g}, not {guard}")
        return found

    def __str__(self) -> str:
        terms = (name if weight == 1 else f"{weight:g}*{name}" for name, weight in self.weights.items())
        return " + ".join(terms) + "".join(f", {guard}" for guard in self.guards)


def read_goal(metric: str, guards: Sequence[str] = ()) -> Goal:
    """Parse a metric or a weighted sum such as ``right + 0.5*clip``, and guards such as ``clipping<=0.05``.

    Raises:
        InputError: wrong syntax, an unknown metric, or guards that cannot hold.
    """
    weights: dict[str, float] = {}
    for term in metric.split("+"):
        match = _WEIGHTED.fullmatch(term.strip())
        if match is None:
            raise InputError(f"metric {shown(metric)} is not a sum of metrics: write it as right + 0.5*clip")
        weights[_known(match[2])] = weights.get(match[2], 0.0) + float(match[1] or 1)
    for name, weight in weights.items():
        if abs(weight) > _MAX_WEIGHT:
            raise InputError(
                f"the weight of {name} is {weight:g}: allowed are -{_MAX_WEIGHT} to {_MAX_WEIGHT}"
            )
    if not any(weights.values()):
        raise InputError(f"metric {shown(metric)} is always 0: give a weight other than 0")
    bounds = tuple(map(_parse_guard, guards))
    for name in {guard.metric for guard in bounds}:
        _check_bounds(name, [guard for guard in bounds if guard.metric == name])
    return Goal(weights=weights, guards=bounds)


def _known(name: str) -> str:
    if name not in LIMITS:
        raise unknown("metric", name, LIMITS)
    return name


def _check_bounds(name: str, guards: Sequence[Bound]) -> None:
    """Refuse guards that cannot hold."""
    low, high = LIMITS[name]
    for guard in guards:
        if (guard.bound < low) if guard.at_most else (guard.bound > high):
            raise InputError(f"guard {shown(guard)} cannot hold: {name} lies between {low:g} and {high:g}")
    least = [guard for guard in guards if not guard.at_most]
    most = [guard for guard in guards if guard.at_most]
    for one, other in product(least, most):
        if one.bound > other.bound:
            raise InputError(f"guards {shown(one)} and {shown(other)} cannot both hold")


def _parse_guard(text: str) -> Bound:
    match = _GUARD.fullmatch(text)
    if match is None:
        raise InputError(f"guard {shown(text)} is not a bound: write it as clipping<=0.05 or clean>=0.9")
    return Bound(metric=_known(match[1]), at_most=match[2] == "<=", bound=float(match[3]))


def unmeasured(name: str, measured: Iterable[str]) -> InputError:
    """The error for a metric that was not measured: its prerequisites, or the nearest name."""
    if name in NEEDS:
        return InputError(
            f"metric {name!r} was not measured: it needs {NEEDS[name]}; available are {', '.join(measured)}"
        )
    return unknown("metric", name, measured)


def _value(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise unmeasured(name, metrics)
    return metrics[name]
