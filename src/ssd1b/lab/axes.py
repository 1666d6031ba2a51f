"""Axes of a sweep: a setting and its values, in the syntax of AUTOMATIC1111 and SwarmUI.

``guidance=2, 5, 9`` lists values, separated by ``||`` if one contains commas. ``1-10`` is a range in steps of
one, ``1-10 (+2)`` in steps of two, ``10-1 (-3)`` is decreasing, ``1-10 [5]`` gives five evenly spaced values;
``5, 10, .., 30`` continues the pattern. A seed of -1 is random.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_DOWN, Decimal
from typing import Any

from ssd1b.errors import InputError, prefix_errors, shown, unknown
from ssd1b.loras import Lora, scaled
from ssd1b.numerals import DECIMAL, DIGITS
from ssd1b.presets import NEGATIVE_PROMPTS, load_preset
from ssd1b.settings import (
    OPTIONS,
    RANDOM_SEED,
    SEED_SETTINGS,
    SETTINGS,
    Setting,
    check_overrides,
    identified,
    random_seed,
    read_size,
    with_drawn_seed,
)

MAX_VALUES = 1000
"""The most values on one axis."""

NONE = "none"
"""Written in place of a negative prompt, which differs from an empty one, a picture, LoRAs or controls, for
none."""

LORA_STRENGTH = "lora-strength"
"""The axis of the strengths of all LoRAs; with a dot and a name, as ``lora-strength.pixels``, of one."""

FIELD_AXES = {
    f"{option}-{field}": (kind, field)
    for option, kind in (("control", "control"), ("ip-adapter", "image_prompt"))
    for field in ("scale", "start", "end")
}
"""Axes of a number of all controls or image prompts: the field of ``Value``, and that of each of them."""

_RANGE = re.compile(
    rf"({DECIMAL})\s*-\s*({DECIMAL})\s*(?:\(\s*([+-]?\s*{DECIMAL})\s*\)|\[\s*({DIGITS})\s*\])?"
)
_PAIR = re.compile(rf"({DECIMAL})\s*[-:]\s*({DECIMAL})")
_ELLIPSES = ("..", "...")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One value of an axis.

    Attributes:
        label: its name in tables and plots.
        settings: fields of ``GenerationSettings`` that it sets.
        model: replaces the sweep's model unless None.
        prompt: replaces the prompt unless None.
        words: text to search for in the prompt and negative prompt, and its replacement.
        lora_strength: the name of a LoRA, or None for all, and what its strengths are multiplied by.
        control: a field of ``controls.Control`` and its value, for all controls.
        image_prompt: the same of ``image_prompts.ImagePrompt``.
    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    prompt: str | None = None
    words: tuple[str, str] | None = None
    lora_strength: tuple[str | None, float] | None = None
    control: tuple[str, float] | None = None
    image_prompt: tuple[str, float] | None = None

    @property
    def changes(self) -> set[str]:
        """Names of the settings that it sets, or in which it changes something."""
        inside = {"loras": self.lora_strength, "controls": self.control, "image_prompts": self.image_prompt}
        return {*self.settings, *(name for name, changed in inside.items() if changed)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A setting and its values in a sweep."""

    name: str
    values: tuple[Value, ...]


def number_of(value: Value) -> float:
    """The number of a value that sets a single numeric setting; otherwise NaN."""
    if pair := value.lora_strength or value.control or value.image_prompt:
        return pair[1]
    settings = [*value.settings.values()]
    return float(settings[0]) if len(settings) == 1 and isinstance(settings[0], int | float) else math.nan


def settings_of(axes: Iterable[Axis]) -> set[str]:
    """Name the settings that axes set."""
    return {name for axis in axes for value in axis.values for name in value.settings}


def applied(settings: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """Apply values of axes to settings: first what they set, then what they change in LoRAs and pictures.

    Args:
        settings: by name; items of lists may be tables.
        values: by the axis; of several that set the same setting, the last one counts.

    Raises:
        InputError: there is nothing to change, or a changed number is out of range.
    """
    found = dict(settings)
    for value in values.values():
        found |= value.settings
    for axis, value in values.items():
        if value.lora_strength:
            found["loras"] = _scaled(found.get("loras", ()), *value.lora_strength)
        for setting, changed in (("controls", value.control), ("image_prompts", value.image_prompt)):
            if changed:
                found[setting] = _with_field(axis, setting, found.get(setting, ()), *changed)
    return found


def _with_field(axis: str, setting: str, items: Sequence[Any], field: str, value: float) -> tuple[Any, ...]:
    """Set a field of all items of a setting, such as the scale of all controls."""
    row = SETTINGS[setting]
    if not items or row.item is None:
        option = row.flags[0]
        raise InputError(f"axis {axis}: there is no {option.removeprefix('--')}: give one with {option}")
    with prefix_errors(f"axis {axis}"):
        given = [row.item(**each) if isinstance(each, Mapping) else each for each in items]
        return tuple(replace(each, **{field: value}) for each in given)


def _scaled(loras: Sequence[Any], name: str | None, factor: float) -> tuple[Lora, ...]:
    """Multiply the strengths of one LoRA, or of all."""
    if not loras:
        raise InputError(f"axis {LORA_STRENGTH}: there is no LoRA: give one with --lora")
    return scaled([each if isinstance(each, Lora) else Lora(**each) for each in loras], factor, name)


def parse_axis(text: str) -> Axis:
    """Parse an axis such as ``guidance=2,5,9``.

    Raises:
        InputError: unknown setting, no values, too many values, or values that are not allowed.
    """
    name, equals, values = text.partition("=")
    if not equals:
        raise InputError(f"axis {shown(text)} has no values: write it as guidance=2,5,9")
    return make_axis(name, _split(values))


def make_axis(name: str, items: Sequence[str]) -> Axis:
    """Build an axis from a name and values as written, which may include ranges.

    Raises:
        InputError: as ``parse_axis``.
    """
    first, dot, lora = name.strip().partition(".")
    key = first.lower().replace("_", "-").replace(" ", "-")
    key = _ALIASES.get(key, key)
    if key not in _READERS or (dot and key != LORA_STRENGTH):
        raise unknown("axis", name.strip(), _READERS)
    items = [item.strip() for item in items]
    if not items or not any(items):
        raise InputError(f"axis {key} has no values: write it as {key}={_EXAMPLES.get(key) or 'one,another'}")
    with prefix_errors(f"axis {key}"):
        read = _lora_strengths(lora) if lora else _READERS[key]
        values = [replace(each, settings=with_drawn_seed(each.settings)) for each in read(items)]
        for value in values:
            check_overrides(value.settings)
    return Axis(name=f"{key}{dot}{lora}", values=tuple({value.label: value for value in values}.values()))


def _split(text: str) -> list[str]:
    """Split at ``||``, or without any at commas outside quotation marks."""
    if "||" in text:
        return text.split("||")
    return next(csv.reader([re.sub(r"[\r\n]", " ", text)], skipinitialspace=True), [])


def _numbers(setting: Setting) -> Callable[[list[str]], list[Value]]:
    def read(items: list[str]) -> list[Value]:
        found: list[Decimal] = []
        for position, item in enumerate(items):
            if setting.name in SEED_SETTINGS and item == str(RANDOM_SEED):
                found.append(Decimal(random_seed()))
            elif item in _ELLIPSES:
                if not found or position + 1 == len(items):
                    raise InputError(f"{item!r} must stand between values, as in 1, 2, .., 10")
                found += _between(found, _number(items[position + 1]))
            else:
                found += _range(item, setting.kind)
            _count(len(found))
        return [Value(label=_plain(each), settings={setting.name: _as(setting.kind, each)}) for each in found]

    return read


def _lora_strengths(name: str | None) -> Callable[[list[str]], list[Value]]:
    """Read factors of the strengths of one LoRA, or of all."""
    read = _numbers(Setting(name=LORA_STRENGTH, kind=float))

    def factors(items: list[str]) -> list[Value]:
        return [
            Value(label=each.label, lora_strength=(name, each.settings[LORA_STRENGTH]))
            for each in read(items)
        ]

    return factors


def _fields(axis: str) -> Callable[[list[str]], list[Value]]:
    """Read values of a field of all controls or image prompts."""
    read = _numbers(Setting(name=axis, kind=float))
    kind, name = FIELD_AXES[axis]

    def values(items: list[str]) -> list[Value]:
        found: list[Value] = []
        for each in read(items):
            changed: dict[str, Any] = {kind: (name, each.settings[axis])}
            found.append(Value(label=each.label, **changed))
        return found

    return values


def _lists(setting: Setting) -> Callable[[list[str]], list[Value]]:
    """Read lists, whose items are separated by a plus with spaces; "none" is an empty one."""
    read = setting.read
    assert read is not None
    return lambda items: [
        Value(
            label=item,
            settings={setting.name: () if item == NONE else tuple(map(read, item.split(" + ")))},
        )
        for item in items
    ]


def _range(item: str, kind: type) -> Iterator[Decimal]:
    match = _RANGE.fullmatch(item)
    if match is None:
        yield _number(item)
        return
    first, last = Decimal(match[1]), Decimal(match[2])
    if match[4]:
        count = int(match[4])
        if count == 0:
            raise InputError(f"{shown(match[0])} has no values: the number in brackets is 1 or more")
        _count(count)
        gaps = max(count - 1, 1)
        even = (first + (last - first) * number / gaps for number in range(count))
        yield from (
            each.to_integral(ROUND_DOWN) if kind is int else round(each, 6).normalize() for each in even
        )
        return
    step = Decimal(match[3].replace(" ", "")) if match[3] else Decimal(1 if first <= last else -1)
    if step == 0 or (last - first) * step < 0:
        raise InputError(f"the range {shown(item)} never gets from {first} to {last} by {step}")
    count = int((last - first) / step) + 1
    _count(count)
    yield from (first + number * step for number in range(count))


def _between(found: list[Decimal], last: Decimal) -> list[Decimal]:
    """Continue the pattern of the preceding values, up to but not including ``last``."""
    before = found[-2:]
    step = before[1] - before[0] if len(before) == 2 else Decimal(1 if before[0] <= last else -1)
    if step == 0 or (last - found[-1]) * step < 0:
        raise InputError(f"'..' never gets from {found[-1]} to {last} by {step}")
    count = math.ceil((last - found[-1]) / step) - 1
    _count(count)
    return [found[-1] + number * step for number in range(1, count + 1)]


def _number(item: str) -> Decimal:
    if not re.fullmatch(DECIMAL, item):
        raise InputError(f"{shown(item)} is not a number, nor a range such as 1-10 (+2) or 1-10 [5]")
    return Decimal(item)


def _as(kind: type, value: Decimal) -> int | float:
    return int(value) if kind is int and value == int(value) else float(value)


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _count(count: int) -> None:
    if count > MAX_VALUES:
        raise InputError(f"that is {count} values: allowed are {MAX_VALUES} on one axis")


def _texts(setting: Setting) -> Callable[[list[str]], list[Value]]:
    special = {} if setting.is_name else {NONE: None}
    return lambda items: [
        Value(label=item, settings={setting.name: special.get(item, item)}) for item in items
    ]


def _files(setting: Setting) -> Callable[[list[str]], list[Value]]:
    def read(items: list[str]) -> list[Value]:
        found: dict[object, Value] = {}
        for item in items:
            settings = identified({setting.name: None if item == NONE else item})
            value = found.setdefault(settings[setting.name], Value(label=item, settings=settings))
            if value.label != item:
                raise InputError(f"{item} and {value.label} have the same content: name only one of them")
        return [*found.values()]

    return read


def _negative_presets(items: list[str]) -> list[Value]:
    for item in items:
        if item not in (NONE, *NEGATIVE_PROMPTS):
            raise unknown("negative preset", item, [NONE, *NEGATIVE_PROMPTS])
    return [Value(label=item, settings={"negative_prompt": NEGATIVE_PROMPTS.get(item)}) for item in items]


def _presets(items: list[str]) -> list[Value]:
    return [Value(label=item, settings=dict(load_preset(item).settings)) for item in items]


def _sizes(option: str) -> Callable[[list[str]], list[Value]]:
    return lambda items: [Value(label=item, settings=read_size(item, option)) for item in items]


def _pairs(setting: Setting) -> Callable[[list[str]], list[Value]]:
    def read(items: list[str]) -> list[Value]:
        values = []
        for item in items:
            match = _PAIR.fullmatch(item)
            if match is None:
                raise InputError(f"{shown(item)} is not an interval: write it as 0.2-0.8")
            values.append(Value(label=item, settings={setting.name: (float(match[1]), float(match[2]))}))
        return values

    return read


def _models(items: list[str]) -> list[Value]:
    return [Value(label=item, model=item) for item in items]


def _words(items: list[str]) -> list[Value]:
    if not items[0]:
        raise InputError("its first value is what is searched for: it must not be empty")
    return [Value(label=item, words=(items[0], item)) for item in items]


def _reader(option: str, setting: Setting, *others: Setting) -> Callable[[list[str]], list[Value]]:
    if others:
        return _sizes(option)
    if setting.read:
        return _lists(setting)
    if setting.identify:
        return _files(setting)
    return {tuple: _pairs, str: _texts}.get(setting.kind, _numbers)(setting)


_READERS: dict[str, Callable[[list[str]], list[Value]]] = {
    "model": _models,
    "words": _words,
    "negative-preset": _negative_presets,
    "preset": _presets,
    LORA_STRENGTH: _lora_strengths(None),
    **{name: _fields(name) for name in FIELD_AXES},
    **{name: _reader(name, *settings) for name, settings in OPTIONS.items()},
}
"""The parser of each axis's values."""

_FIRST = (
    "model", "lora", LORA_STRENGTH, "control", "ip-adapter", *FIELD_AXES, "size", "words", "negative",
    "negative-preset", "preset", "seed", "sampler", "schedule", "steps", "guidance-interval",
    "guidance-rescale", "feature-reuse", "guidance",
)  # fmt: skip

AXES = (*_FIRST, *(name for name in _READERS if name not in _FIRST))
"""All axes, outer loops first: those that are expensive to change. New settings come last."""

_ALIASES = {
    "replace": "words",
    "prompt-s/r": "words",
    **{
        alias.removeprefix("--"): name
        for name, (setting, *_) in OPTIONS.items()
        for alias in (*setting.flags[1:], *setting.aliases)
    },
}
"""Other names of axes."""

_FIELD_EXAMPLES = {"scale": "0,0.5,1", "start": "0,0.2", "end": "0.5,1"}

_EXAMPLES = {
    "words": "red,blue",
    LORA_STRENGTH: "0,0.5,1",
    **{name: _FIELD_EXAMPLES[field] for name, (_, field) in FIELD_AXES.items()},
    **{name: setting.example for name, (setting, *_) in OPTIONS.items()},
}
