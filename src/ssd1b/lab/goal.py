"""What tuning is for: metrics with their weights, and guards that must hold whatever the metrics say."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ssd1b.errors import InputError, shown, unknown
from ssd1b.numerals import DECIMAL

_OF_CAPTIONS = (
    "flawless", "right", "shape", "color", "size", "material", "number", "background", "relation",
)  # fmt: skip
_JUDGE = "a model that draws Tabletop, and prompts that are complete captions"

NEEDS: Mapping[str, str] = MappingProxyType({
    **dict.fromkeys(_OF_CAPTIONS, _JUDGE),
    "clean": "a model that draws Tabletop",
    "clip": "a model with an image encoder, or openai/clip-vit-large-patch14 in the hub's cache",
    "pickscore": "yuvalkirstain/PickScore_v1 in the hub's cache",
    "diversity": "several seeds",
    "unconverged": "several numbers of steps",
})  # fmt: skip
"""What metrics need that are not measured of every picture."""

_WEIGHTED = re.compile(rf"(?:(-?{DECIMAL})\s*\*\s*)?([a-z_]+)")
_GUARD = re.compile(rf"\s*([a-z_]+)\s*(<=|>=)\s*([+-]?{DECIMAL}(?:e-?[0-9]{{1,2}})?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A bound on the mean of a metric."""

    metric: str
    at_most: bool
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{'<=' if self.at_most else '>='}{self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is to be as large as can be.

    Attributes:
        weights: of metrics, in their sum.
        guards: bounds that must hold. A metric alone can be won by what nobody wants: those that were learned
            from people's choices like oversaturated pictures.
    """

    weights: Mapping[str, float]
    guards: tuple[Guard, ...] = ()

    def score(self, metrics: Mapping[str, float]) -> float:
        """Of one picture.

        Raises:
            InputError: a metric was not measured.
        """
        return sum(weight * _value(metrics, name) for name, weight in self.weights.items())

    def broken(self, pictures: Sequence[Mapping[str, float]]) -> list[str]:
        """Guards that do not hold on the average of some pictures.

        Raises:
            InputError: a metric was not measured.
        """
        found = []
        for guard in self.guards:
            mean = float(np.mean([_value(each, guard.metric) for each in pictures]))
            if (mean > guard.bound) if guard.at_most else (mean < guard.bound):
                found.append(f"{guard.metric} is {mean:.3g}, not {guard}")
        return found

    def __str__(self) -> str:
        terms = (name if weight == 1 else f"{weight:g}*{name}" for name, weight in self.weights.items())
        return " + ".join(terms) + "".join(f", {guard}" for guard in self.guards)


def read_goal(metric: str, guards: Sequence[str] = ()) -> Goal:
    """Read a metric, or a weighted sum as ``right + 0.5*clip``, and guards as ``clipping<=0.05``.

    Raises:
        InputError: it is written otherwise.
    """
    weights: dict[str, float] = {}
    for term in metric.split("+"):
        match = _WEIGHTED.fullmatch(term.strip())
        if match is None:
            raise InputError(f"metric {shown(metric)} is no sum: write it as right + 0.5*clip")
        weights[match[2]] = weights.get(match[2], 0.0) + float(match[1] or 1)
    return Goal(weights=weights, guards=tuple(map(_guard, guards)))


def _guard(text: str) -> Guard:
    match = _GUARD.fullmatch(text)
    if match is None:
        raise InputError(f"guard {shown(text)} is no bound: write it as clipping<=0.05 or clean>=0.9")
    return Guard(metric=match[1], at_most=match[2] == "<=", bound=float(match[3]))


def unmeasured(name: str, measured: Iterable[str]) -> InputError:
    """What to say of a metric that is not there: what it needs, or which one may have been meant."""
    if name in NEEDS:
        return InputError(
            f"metric {name!r} was not measured: it needs {NEEDS[name]}; measured were {', '.join(measured)}"
        )
    return unknown("metric", name, measured)


def _value(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise unmeasured(name, metrics)
    return metrics[name]
