"""The settings of a picture: what each may be, and how defaults, preset and choices become one."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, no_type_check

from ssd1b.errors import InputError, shown, unknown
from ssd1b.sampler_names import SAMPLERS, SCHEDULES, resolve, resolve_schedule

ARTICLE = "Segmind, 'SSD-1B: Best settings for crafting compelling images'"
CARD = "model card of segmind/SSD-1B"
"""The two sources of advice on SSD-1B, as they are named to the user."""

DEFAULT_MODEL = "mini-ssd-1b"
"""The model that draws if nobody names one: built in, so that everything runs at once."""

MAX_PROMPT_LENGTH = 10_000
"""Characters; a longer prompt is a mistake or an attack."""

_NO_TEXT = re.compile("[\0\ud800-\udfff]")

_SIZE = re.compile(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", re.IGNORECASE)

SEEDS = 2**32
"""How many seeds there are: torch's generator on the CPU takes the lowest 32 bits of one, and repeats."""

RANDOM_SEED = -1
"""In a seed's place: that one is to be drawn, as in AUTOMATIC1111."""

MAX_PIXELS = 2048 * 2048
"""Pixels of one picture: four times what SDXL was trained for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that a setting may be, both ends included.

    Attributes:
        multiple_of: 1 for whole numbers, 8 for multiples of 8; None allows fractions.
        why: the reason for the bounds, where people may wonder.
    """

    low: int | float
    high: int | float
    multiple_of: int | None = None
    why: str = ""

    def check(self, name: str, value: Any) -> int | float:
        """Give ``value`` back as a plain int or float.

        Raises:
            InputError: it is no such number.
        """
        # Written so that NaN, of which every comparison is false, is refused.
        allowed = _is_number(value, whole=self.multiple_of is not None) and self.low <= value <= self.high
        if not allowed or (self.multiple_of and value % self.multiple_of):
            raise InputError(f"{name} is {shown(value)}: allowed are {self}{self.why and f' ({self.why})'}")
        return int(value) if self.multiple_of else float(value)

    def __str__(self) -> str:
        """Say it in words: "multiples of 8 from 64 to 4096"."""
        kinds = {None: "numbers", 1: "whole numbers"}
        kind = kinds.get(self.multiple_of, f"multiples of {self.multiple_of}")
        return f"{kind} from {self.low} to {self.high}"


RANGES: Mapping[str, Range] = MappingProxyType({
    "guidance_scale": Range(low=0, high=100),
    "guidance_rescale": Range(low=0, high=1),
    "feature_reuse": Range(low=0, high=1),
    "steps": Range(low=1, high=1000, multiple_of=1),
    "seed": Range(low=0, high=SEEDS - 1, multiple_of=1, why="torch takes 32 bits, larger ones repeat"),
    "width": Range(low=64, high=4096, multiple_of=8),
    "height": Range(low=64, high=4096, multiple_of=8),
})  # fmt: skip

PAIR_RANGES: Mapping[str, Range] = MappingProxyType({
    "guidance_interval": Range(low=0, high=1),
    "original_size": Range(low=1, high=65_536, multiple_of=1),
    "crop_top_left": Range(low=0, high=65_536, multiple_of=1),
    "target_size": Range(low=1, high=65_536, multiple_of=1),
})  # fmt: skip
"""What both numbers of a pair may be."""


@no_type_check  # __post_init__ checks the types itself, with messages for users
@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Everything that the user decides about one picture: checked, complete, in canonical names.

    Attributes:
        prompt: what to draw, in the syntax of ``ssd1b.prompts``.
        negative_prompt: what to keep away from. None is no negative prompt, for which SDXL takes zeros; "" is
            the encoding of an empty text, and gives another picture.
        guidance_scale: strength of classifier-free guidance (2207.12598) in the convention where 1 is none.
        guidance_rescale: 0 to 1, how far guidance is held back from overexposing (2305.08891, section 3.4).
        guidance_interval: begin and end of guidance, as fractions of the way from noise (0) to picture (1)
            (2404.07724).
        feature_reuse: how far the UNet's finest features may move, by their norm, before its deep ones are
            computed anew (after 2312.00858); 0 computes them at every step.
        steps: of denoising.
        sampler: a name of ``sampler_names.SAMPLERS``.
        schedule: a name of ``sampler_names.SCHEDULES``; None is the sampler's own, else the model's own.
        seed: of the picture's own noise.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        original_size: micro-conditioning (2307.01952, section 2.2), in pixels: (height, width) of a
            photograph,
        crop_top_left: (top, left) of the part that was cut out of it, and
        target_size: (height, width) that was asked for.
    """

    prompt: str
    negative_prompt: str | None
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    feature_reuse: float
    steps: int
    sampler: str
    schedule: str | None
    seed: int
    width: int
    height: int
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: tuple[int, int]

    def __post_init__(self) -> None:
        """Check every field; InputError says which one is wrong and what it may be."""
        check_text("prompt", self.prompt)
        if not self.prompt.strip():
            raise InputError("prompt is empty: say what to draw")
        if self.negative_prompt is not None:
            check_text("negative_prompt", self.negative_prompt)
        check_name("sampler", self.sampler, SAMPLERS)
        if self.schedule is not None:
            check_name("schedule", self.schedule, SCHEDULES)
        for name, allowed in RANGES.items():
            object.__setattr__(self, name, allowed.check(name, getattr(self, name)))
        for name, allowed in PAIR_RANGES.items():
            object.__setattr__(self, name, _check_pair(name, getattr(self, name), allowed))
        start, end = self.guidance_interval
        if start >= end:
            raise InputError(f"guidance_interval is {start:g} to {end:g}: its begin must lie before its end")
        if self.width * self.height > MAX_PIXELS:
            raise InputError(
                f"size is {self.width}x{self.height}: allowed are at most {MAX_PIXELS} pixels, as 2048x2048"
            )


SETTINGS = frozenset(each.name for each in fields(GenerationSettings)) - {"prompt"}
"""Names of what defaults, presets and choices can set."""

DEFAULTS: Mapping[str, object] = MappingProxyType({
    "negative_prompt": None,
    "guidance_rescale": 0.0,
    "guidance_interval": (0.0, 1.0),
    "feature_reuse": 0.0,
    "steps": 25,  # the article: more do not yield a significant difference
    "sampler": "euler",  # the scheduler that SDXL and its distilled models are published with
    "schedule": None,
    "width": 1024,
    "height": 1024,
})  # fmt: skip

GUIDANCE_DEFAULTS: Mapping[str, float] = MappingProxyType({
    "ssd-1b": 9.0,  # its model card: "use negative prompting, and a CFG around 9.0"
    "vega": 9.0,  # its model card says the same
    # SDXL's usual 5 to 7, and diffusers' default; KOALA has only the latter.
    "sdxl": 5.0,
    "koala-1b": 5.0,
    "koala-700m": 5.0,
})  # fmt: skip
"""Guidance scale of each model family (a name of ``layouts.UNETS``) when nobody says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings under a name, with the reason for them."""

    name: str
    source: str
    settings: Mapping[str, object]

    def __post_init__(self) -> None:
        """Bring the names to their canonical form; InputError for one that is none."""
        object.__setattr__(self, "settings", MappingProxyType(_canonical(self.settings)))


def resolve_settings(
    prompt: str, *, family: str, model_defaults: Mapping[str, object], preset: Preset | None, **given: object
) -> GenerationSettings:
    """Settle every setting: what is ``given`` wins over preset, model and family, in this order.

    Sampler and schedule may have any name that ``sampler_names`` knows ("DPM++ 2M Karras").
    Micro-conditioning that nobody set says that the picture is whole and was taken at the size it has.

    Args:
        prompt: what to draw.
        family: a name of ``layouts.UNETS``.
        model_defaults: the model's own settings, with its size where that is not 1024.
        preset: None for none.
        given: what the user chose; the seed must be in here or in another layer, -1 for a random one. A
            setting counts as chosen when it is present, as ``negative_prompt=None`` is a choice too.

    Raises:
        InputError: a setting is unknown or its value is not allowed.
    """
    if family not in GUIDANCE_DEFAULTS:
        raise unknown("model family", family, GUIDANCE_DEFAULTS)
    settings: dict[str, Any] = {**DEFAULTS, "guidance_scale": GUIDANCE_DEFAULTS[family]}
    for layer in (model_defaults, preset.settings if preset else {}, given):
        settings |= _canonical(layer)
    settings = with_drawn_seed(settings)
    size = (settings["height"], settings["width"])
    whole = {"original_size": size, "crop_top_left": (0, 0), "target_size": size}
    return GenerationSettings(prompt=prompt, **(whole | settings))


def read_size(text: str) -> dict[str, int]:
    """Read "1024x768" (width first), or one number for a square.

    Raises:
        InputError: it is neither.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"size is {shown(text)}: it must be as 1024x768, or one number for a square")
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def random_seed() -> int:
    """Choose one of the ``SEEDS``."""
    return secrets.randbelow(SEEDS)


def with_drawn_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a seed of ``RANDOM_SEED`` by one that is drawn now."""
    seed = settings.get("seed")
    drawn = {"seed": random_seed()} if _is_number(seed, whole=True) and seed == RANDOM_SEED else {}
    return {**settings, **drawn}


def equal_seed(seed: Any) -> Any:
    """Replace a larger seed, as other programs and earlier versions wrote it, by the one with the same noise.

    Everything else comes back as it is, for ``RANGES`` to refuse.
    """
    return seed % SEEDS if _is_number(seed, whole=True) and SEEDS <= seed < 2**64 else seed


def check_text(name: str, value: object) -> str:
    """Give ``value`` back if it is text that a tokenizer, a file and a terminal can all hold.

    Raises:
        InputError: it is no text, too long, or has a null character or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} is {shown(value)}: it must be text")
    if len(value) > MAX_PROMPT_LENGTH:
        raise InputError(f"{name} has {len(value)} characters: allowed are {MAX_PROMPT_LENGTH}")
    if _NO_TEXT.search(value):
        raise InputError(f"{name} has a character that is no text (a null or half of a surrogate pair)")
    return value


def _is_number(value: object, *, whole: bool) -> bool:
    # A bool is a number to Python, but True steps are a mistake. numpy's numbers are numbers.
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def check_names(kind: str, given: Mapping[str, object], allowed: frozenset[str]) -> None:
    """Raise for the first key of ``given`` that is not ``allowed``, with the nearest that is."""
    for name in given:
        check_name(kind, name, allowed)


def check_name(kind: str, given: object, allowed: Mapping[str, object] | frozenset[str]) -> None:
    """Raise for a name that is not ``allowed``, with the nearest that is."""
    if not isinstance(given, str) or given not in allowed:
        raise unknown(kind, given if isinstance(given, str) else shown(given), allowed)


def _check_pair(name: str, value: object, allowed: Range) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"{name} is {shown(value)}: it must be two {allowed}")
    first, second = value
    return allowed.check(name, first), allowed.check(name, second)


def _canonical(layer: Mapping[str, object]) -> dict[str, object]:
    """Check the names of one layer and put its sampler and schedule into their canonical spelling."""
    check_names("setting", layer, SETTINGS)
    settings = dict(layer)
    if isinstance(sampler := settings.get("sampler"), str):
        settings["sampler"], schedule = resolve(sampler)
        if schedule:
            settings.setdefault("schedule", schedule)
    if isinstance(schedule := settings.get("schedule"), str):
        settings["schedule"] = resolve_schedule(schedule)
    return settings
