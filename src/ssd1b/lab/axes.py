"""Axes of a sweep: which setting takes which values, in the syntax of AUTOMATIC1111 and SwarmUI.

``guidance=2, 5, 9`` are values, with ``||`` between them where one holds commas. ``1-10`` is a range by
ones, ``1-10 (+2)`` by twos, ``10-1 (-3)`` falls, ``1-10 [5]`` is five evenly spaced; ``5, 10, .., 30`` goes
on as it began. A seed of -1 is random.
"""

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_DOWN, Decimal
from typing import Any

from ssd1b.errors import InputError, shown, unknown
from ssd1b.numerals import DECIMAL, DIGITS
from ssd1b.presets import NEGATIVE_PROMPTS, load_preset
from ssd1b.settings import (
    PAIR_RANGES,
    RANDOM_SEED,
    RANGES,
    Range,
    random_seed,
    read_size,
    resolve_settings,
    with_drawn_seed,
)

MAX_VALUES = 1000
"""On one axis."""

NONE = "none"
"""In place of a negative prompt: that there is none, which is not the same as an empty one."""

_RANGE = re.compile(
    rf"({DECIMAL})\s*-\s*({DECIMAL})\s*(?:\(\s*([+-]?\s*{DECIMAL})\s*\)|\[\s*({DIGITS})\s*\])?"
)
_PAIR = re.compile(rf"({DECIMAL})\s*[-:]\s*({DECIMAL})")
_AND_SO_ON = ("..", "...")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One place on an axis.

    Attributes:
        label: what it is called.
        settings: fields of ``GenerationSettings`` that it sets.
        model: that it takes; None leaves the sweep's.
        prompt: likewise.
        words: what it searches in the prompt and the negative prompt, and what it puts there instead.
    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    prompt: str | None = None
    words: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A setting and the values that it takes in a sweep."""

    name: str
    values: tuple[Value, ...]


def number_of(value: Value) -> float:
    """The setting of a value that sets a single number; else NaN."""
    settings = [*value.settings.values()]
    return float(settings[0]) if len(settings) == 1 and isinstance(settings[0], int | float) else math.nan


def parse_axis(text: str) -> Axis:
    """Read an axis, as ``guidance=2,5,9``.

    Raises:
        InputError: it names no setting, has no values, too many, or some that are not allowed.
    """
    name, equals, values = text.partition("=")
    if not equals:
        raise InputError(f"axis {shown(text)} has no values: write it as guidance=2,5,9")
    return make_axis(name, _split(values))


def make_axis(name: str, items: Sequence[str]) -> Axis:
    """Build an axis of a name and values as they are written, ranges among them.

    Raises:
        InputError: as ``parse_axis``.
    """
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = _ALSO.get(key, key)
    if key not in _KINDS:
        raise unknown("axis", name.strip(), _KINDS)
    items = [item.strip() for item in items]
    if not items or not any(items):
        raise InputError(f"axis {key} has no values: write it as {key}={_EXAMPLES.get(key, 'one,another')}")
    try:
        values = [replace(each, settings=with_drawn_seed(each.settings)) for each in _KINDS[key](items)]
        for value in values:
            resolve_settings("any", family="sdxl", model_defaults={"seed": 0}, preset=None, **value.settings)
    except InputError as error:
        raise InputError(f"axis {key}: {error}") from None
    return Axis(name=key, values=tuple({value.label: value for value in values}.values()))


def _split(text: str) -> list[str]:
    """Cut at ``||``, or else at commas outside of quotation marks."""
    if "||" in text:
        return text.split("||")
    return next(csv.reader([re.sub(r"[\r\n]", " ", text)], skipinitialspace=True), [])


def _numbers(name: str) -> Callable[[list[str]], list[Value]]:
    allowed = RANGES[name]

    def read(items: list[str]) -> list[Value]:
        found: list[Decimal] = []
        for position, item in enumerate(items):
            if name == "seed" and item == str(RANDOM_SEED):
                found.append(Decimal(random_seed()))
            elif item in _AND_SO_ON:
                if not found or position + 1 == len(items):
                    raise InputError(f"{item!r} must stand between values, as in 1, 2, .., 10")
                found += _between(found, _number(items[position + 1]))
            else:
                found += _range(item, allowed)
            _count(len(found))
        return [Value(label=_plain(each), settings={name: _as(allowed, each)}) for each in found]

    return read


def _range(item: str, allowed: Range) -> Iterator[Decimal]:
    match = _RANGE.fullmatch(item)
    if match is None:
        yield _number(item)
        return
    first, last = Decimal(match[1]), Decimal(match[2])
    if match[4]:
        count = int(match[4])
        _count(count)
        gaps = max(count - 1, 1)
        even = (first + (last - first) * number / gaps for number in range(count))
        yield from (
            each.to_integral(ROUND_DOWN) if allowed.multiple_of else round(each, 6).normalize()
            for each in even
        )
        return
    step = Decimal(match[3].replace(" ", "")) if match[3] else Decimal(1 if first <= last else -1)
    if step == 0 or (last - first) * step < 0:
        raise InputError(f"the range {shown(item)} never gets from {first} to {last} by {step}")
    count = int((last - first) / step) + 1
    _count(count)
    yield from (first + number * step for number in range(count))


def _between(found: list[Decimal], last: Decimal) -> list[Decimal]:
    """What continues the values before, up to the one after."""
    before = found[-2:]
    step = before[1] - before[0] if len(before) == 2 else Decimal(1 if before[0] <= last else -1)
    if step == 0 or (last - found[-1]) * step < 0:
        raise InputError(f"'..' never gets from {found[-1]} to {last} by {step}")
    count = math.ceil((last - found[-1]) / step) - 1
    _count(count)
    return [found[-1] + number * step for number in range(1, count + 1)]


def _number(item: str) -> Decimal:
    if not re.fullmatch(DECIMAL, item):
        raise InputError(f"{shown(item)} is no number, nor a range as 1-10 (+2) or 1-10 [5]")
    return Decimal(item)


def _as(allowed: Range, value: Decimal) -> int | float:
    return int(value) if allowed.multiple_of and value == int(value) else float(value)


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _count(count: int) -> None:
    if count > MAX_VALUES:
        raise InputError(f"that is {count} values: allowed are {MAX_VALUES} on one axis")


def _texts(name: str) -> Callable[[list[str]], list[Value]]:
    return lambda items: [Value(label=item, settings={name: item}) for item in items]


def _negatives(items: list[str]) -> list[Value]:
    return [Value(label=item, settings={"negative_prompt": None if item == NONE else item}) for item in items]


def _negative_presets(items: list[str]) -> list[Value]:
    for item in items:
        if item not in (NONE, *NEGATIVE_PROMPTS):
            raise unknown("negative preset", item, [NONE, *NEGATIVE_PROMPTS])
    return [Value(label=item, settings={"negative_prompt": NEGATIVE_PROMPTS.get(item)}) for item in items]


def _presets(items: list[str]) -> list[Value]:
    return [Value(label=item, settings=dict(load_preset(item).settings)) for item in items]


def _sizes(items: list[str]) -> list[Value]:
    return [Value(label=item, settings=read_size(item)) for item in items]


def _intervals(items: list[str]) -> list[Value]:
    values = []
    for item in items:
        match = _PAIR.fullmatch(item)
        if match is None:
            allowed = PAIR_RANGES["guidance_interval"]
            raise InputError(f"{shown(item)} is no interval: write it as 0.2-0.8, both {allowed}")
        values.append(Value(label=item, settings={"guidance_interval": (float(match[1]), float(match[2]))}))
    return values


def _models(items: list[str]) -> list[Value]:
    return [Value(label=item, model=item) for item in items]


def _words(items: list[str]) -> list[Value]:
    if not items[0]:
        raise InputError("its first value is what is searched for: it must not be empty")
    return [Value(label=item, words=(items[0], item)) for item in items]


_KINDS: dict[str, Callable[[list[str]], list[Value]]] = {
    "model": _models,
    "size": _sizes,
    "words": _words,
    "negative": _negatives,
    "negative-preset": _negative_presets,
    "preset": _presets,
    "seed": _numbers("seed"),
    "sampler": _texts("sampler"),
    "schedule": _texts("schedule"),
    "steps": _numbers("steps"),
    "guidance-interval": _intervals,
    "guidance-rescale": _numbers("guidance_rescale"),
    "feature-reuse": _numbers("feature_reuse"),
    "guidance": _numbers("guidance_scale"),
}
"""Readers of each axis's values; those that are dear to change stand first, and are the outer loops."""

AXES = tuple(_KINDS)

_ALSO = {
    "guidance-scale": "guidance",
    "cfg": "guidance",
    "cfg-scale": "guidance",
    "rescale": "guidance-rescale",
    "interval": "guidance-interval",
    "reuse": "feature-reuse",
    "negative-prompt": "negative",
    "replace": "words",
    "prompt-s/r": "words",
    "scheduler": "sampler",
}
"""What else people call them."""

_EXAMPLES = {
    "guidance": "2,5,9",
    "steps": "10-30 (+10)",
    "seed": "1-4",
    "size": "512,512x768",
    "guidance-interval": "0-1,0.2-0.8",
    "guidance-rescale": "0,0.7",
    "feature-reuse": "0,0.1,0.3",
    "words": "red,blue",
}
