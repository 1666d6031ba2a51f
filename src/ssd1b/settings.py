"""The settings of a picture: the one table of them, and how defaults, preset and overrides become one.

Each field of ``GenerationSettings`` is a line of the table: its type, what it may be, and in a ``Setting``
where users meet it. Command-line options, axes of sweeps, command lines in reports, recipes, presets and the
key of a batch come from it.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from types import MappingProxyType
from typing import Annotated, Any, get_type_hints

from ssd1b.errors import InputError, shown, unknown
from ssd1b.sampler_names import AUTOMATIC, SAMPLERS, SCHEDULES, resolve, resolve_schedule
from ssd1b.validation import Check, OneOf, Range, Text, plain_type, validate, validated

ARTICLE = "Segmind, 'SSD-1B: Best settings for crafting compelling images'"
CARD = "model card of segmind/SSD-1B"
"""The two sources of advice on SSD-1B, as they are named to the user."""

DEFAULT_MODEL = "mini-ssd-1b"
"""The model that draws if nobody names one: built in, so that everything runs at once."""

_SIZE = re.compile(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", re.IGNORECASE)

SEEDS = 2**32
"""How many seeds there are: torch's generator on the CPU takes the lowest 32 bits of one, and repeats."""

RANDOM_SEED = -1
"""In a seed's place: one is to be drawn, as in AUTOMATIC1111."""

MAX_PIXELS = 2048 * 2048
"""Pixels of one picture: four times what SDXL was trained for."""

UNSET = object()
"""In a default's place: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where users meet a setting.

    Attributes:
        default: where neither model, preset nor user says otherwise; none for what depends on the model.
        before: what pictures had before the setting existed; recipes of earlier versions lack it.
        flags: the command-line option. The first names the axis of sweeps, too, and is written in reports.
            Width and height share one.
        metavar: of the option's value in the help text.
        help: of the option.
        aliases: other names of the axis.
        example: values of the axis.
        per_picture: it may differ between the pictures of a batch.
        a1111: its key in AUTOMATIC1111's text.
        sdapi: its field in AUTOMATIC1111's HTTP API, ``/sdapi/v1/txt2img``.
        openai: its field in OpenAI's HTTP API, ``/v1/images/generations``.
        name: of the field of ``GenerationSettings``, filled in from there as the following.
        kind: ``int``, ``float``, ``str`` or ``tuple``.
        is_name: of the text: it is one of several names, and not free.
    """

    default: object = UNSET
    before: object = UNSET
    flags: tuple[str, ...] = ()
    metavar: str = ""
    help: str = ""
    aliases: tuple[str, ...] = ()
    example: str = ""
    per_picture: bool = False
    a1111: str | None = None
    sdapi: str | None = None
    openai: str | None = None
    name: str = ""
    kind: type = str
    is_name: bool = False


def _not_blank(prompt: str) -> None:
    if not prompt.strip():
        raise InputError("prompt is empty: say what to draw")


def _rising(interval: tuple[float, float]) -> None:
    start, end = interval
    if start >= end:
        raise InputError(f"guidance_interval is {start:g} to {end:g}: its begin must lie before its end")


Prompt = Annotated[Text, Check(_not_blank)]
Seed = Annotated[int, Range(0, SEEDS - 1, why="torch takes 32 bits, larger ones repeat")]
Pixels = Annotated[int, Range(64, 4096, multiple_of=8)]
Corner = Annotated[tuple[int, int], Range(0, 65_536), Setting(per_picture=True)]
Extent = Annotated[tuple[int, int], Range(1, 65_536), Setting(per_picture=True)]


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Everything that the user decides about one picture: checked, complete, in canonical names."""

    # fmt: off
    prompt: Prompt
    """What to draw, in the syntax of ``ssd1b.prompts``."""

    negative_prompt: Annotated[Text | None, Setting(
        default=None, flags=("--negative", "--negative-prompt"), metavar="TEXT", per_picture=True,
        sdapi="negative_prompt",
        help='What to keep away from. "" is an empty text, which is not the same as none.',
    )]
    """What to keep away from. None is no negative prompt, for which SDXL takes zeros; "" is the encoding of
    an empty text, and gives another picture."""

    guidance_scale: Annotated[float, Range(0, 100), Setting(
        flags=("--guidance", "--guidance-scale"), metavar="SCALE", aliases=("cfg", "cfg-scale"),
        example="2,5,9", a1111="CFG scale", sdapi="cfg_scale",
        help="Strength of classifier-free guidance; 1 is none.",
    )]
    """Strength of classifier-free guidance (2207.12598) in the convention where 1 is none."""

    guidance_rescale: Annotated[float, Range(0, 1), Setting(
        default=0.0, flags=("--guidance-rescale",), metavar="SHARE", aliases=("rescale",), example="0,0.7",
        help="0 to 1: how far guidance is held back from overexposing.",
    )]
    """0 to 1, how far guidance is held back from overexposing (2305.08891, section 3.4)."""

    guidance_interval: Annotated[tuple[float, float], Range(0, 1), Check(_rising), Setting(
        default=(0.0, 1.0), flags=("--guidance-interval",), metavar="START END", aliases=("interval",),
        example="0-1,0.2-0.8", help="Guide only in this part of the way from noise (0) to picture (1).",
    )]
    """Begin and end of guidance, as fractions of the way from noise (0) to picture (1) (2404.07724)."""

    feature_reuse: Annotated[float, Range(0, 1), Setting(
        default=0.0, before=0.0, flags=("--feature-reuse",), metavar="SHARE", aliases=("reuse",),
        example="0,0.1,0.3",
        help="0 to 1: keep deep features while shallow ones change less. Faster; not the same picture.",
    )]
    """How far the UNet's finest features may move, by their norm, before its deep ones are computed anew
    (after 2312.00858); 0 computes them at every step."""

    steps: Annotated[int, Range(1, 1000), Setting(
        default=25,  # the article: more do not yield a significant difference
        flags=("--steps",), metavar="N", example="10-30 (+10)", a1111="Steps", sdapi="steps",
        help="Steps of denoising.",
    )]
    """Number of denoising steps."""

    sampler: Annotated[str, OneOf("sampler", SAMPLERS), Setting(
        default="euler",  # the scheduler that SDXL and its distilled models are published with
        flags=("--sampler",), metavar="NAME", aliases=("scheduler",), a1111="Sampler", sdapi="sampler_name",
        help=f"{', '.join(SAMPLERS)}; AUTOMATIC1111's, ComfyUI's and diffusers' names will do.",
    )]
    """A name of ``sampler_names.SAMPLERS``."""

    schedule: Annotated[Annotated[str, OneOf("schedule", SCHEDULES)] | None, Setting(
        default=None, flags=("--schedule",), metavar="NAME", a1111="Schedule type", sdapi="scheduler",
        help=f"{', '.join(SCHEDULES)}; {AUTOMATIC} is the sampler's own, else the model's.",
    )]
    """A name of ``sampler_names.SCHEDULES``; None is the sampler's own, else the model's own."""

    seed: Annotated[Seed, Setting(
        flags=("--seed",), metavar="N", example="1-4", per_picture=True, a1111="Seed", sdapi="seed",
        help="Of the first picture; the others count on. -1, the default, is random.",
    )]
    """Of the picture's own noise."""

    width: Annotated[Pixels, Setting(
        default=1024, flags=("--size",), metavar="WIDTHxHEIGHT", example="512,512x768", a1111="Size",
        sdapi="width", openai="size", help="In pixels; one number for a square.",
    )]
    """Of the picture, in pixels."""

    height: Annotated[Pixels, Setting(
        default=1024, flags=("--size",), a1111="Size", sdapi="height", openai="size"
    )]
    """Of the picture, in pixels."""

    original_size: Extent
    """Micro-conditioning (2307.01952, section 2.2): (height, width) of a photograph, in pixels."""

    crop_top_left: Corner
    """Micro-conditioning: (top, left) of the part that was cut out of the photograph, in pixels."""

    target_size: Extent
    """Micro-conditioning: (height, width) that the part was scaled to, in pixels."""
    # fmt: on

    def __post_init__(self) -> None:
        """Check what no field can say by itself."""
        _check_area(self.width, self.height)


def _check_area(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"size is {width}x{height}: allowed are at most {MAX_PIXELS} pixels, as 2048x2048")


def _table() -> dict[str, Setting]:
    table = {}
    for name, hint in get_type_hints(GenerationSettings, include_extras=True).items():
        plain, metadata = plain_type(hint)
        is_name = any(isinstance(each, OneOf) for each in metadata)
        for each in metadata:
            if isinstance(each, Setting):
                table[name] = replace(each, name=name, kind=plain, is_name=is_name)
    return table


SETTINGS: Mapping[str, Setting] = MappingProxyType(_table())
"""What defaults, presets and overrides can set: all but the prompt."""


def _options() -> dict[str, tuple[Setting, ...]]:
    options: dict[str, tuple[Setting, ...]] = {}
    for setting in SETTINGS.values():
        for flag in setting.flags[:1]:
            name = flag.removeprefix("--")
            options[name] = (*options.get(name, ()), setting)
    return options


OPTIONS: Mapping[str, tuple[Setting, ...]] = MappingProxyType(_options())
"""Command-line options, which are axes of sweeps, too, by their name; ``size`` is of two settings."""

DEFAULTS: Mapping[str, object] = MappingProxyType(
    {name: each.default for name, each in SETTINGS.items() if each.default is not UNSET}
)

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

    name: Text
    source: Text
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Bring the names to their canonical form; InputError for one that is none."""
        object.__setattr__(self, "settings", MappingProxyType(_canonical(self.settings)))


def resolve_settings(
    prompt: str,
    *,
    family: str,
    model_defaults: Mapping[str, object],
    preset: Preset | None,
    **overrides: object,
) -> GenerationSettings:
    """Settle every setting: overrides win over preset, model and family, in this order.

    Sampler and schedule may have any name that ``sampler_names`` knows ("DPM++ 2M Karras"). Unset
    micro-conditioning defaults to an uncropped image at its own size.

    Args:
        prompt: what to draw.
        family: a name of ``layouts.UNETS``.
        model_defaults: the model's own settings, with its size where that is not 1024.
        preset: None for none.
        overrides: what the user chose; the seed must be in here or in another layer, -1 for a random one. A
            setting counts as chosen when it is present: ``negative_prompt=None`` is a choice, too.

    Raises:
        InputError: a setting is unknown or its value is not allowed.
    """
    if family not in GUIDANCE_DEFAULTS:
        raise unknown("model family", family, GUIDANCE_DEFAULTS)
    settings: dict[str, Any] = {**DEFAULTS, "guidance_scale": GUIDANCE_DEFAULTS[family]}
    for layer in (model_defaults, preset.settings if preset else {}, overrides):
        settings |= _canonical(layer)
    settings = with_drawn_seed(settings)
    size = (settings["height"], settings["width"])
    uncropped = {"original_size": size, "crop_top_left": (0, 0), "target_size": size}
    return GenerationSettings(prompt=prompt, **(uncropped | settings))


def check_overrides(overrides: Mapping[str, object]) -> dict[str, Any]:
    """Check some of the settings by themselves, without prompt and model.

    Returns:
        The settings in canonical names, with a random seed drawn.

    Raises:
        InputError: a setting is unknown or its value is not allowed.
    """
    settings = validate(GenerationSettings, with_drawn_seed(_canonical(overrides)), partial=True)
    _check_area(settings.get("width", 0), settings.get("height", 0))
    return settings


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
    is_random = isinstance(seed, Integral) and seed == RANDOM_SEED
    return {**settings, "seed": random_seed()} if is_random else dict(settings)


def equal_seed(seed: Any) -> Any:
    """Replace a larger seed, as other programs and earlier versions wrote it, by the one with the same noise.

    Everything else comes back unchanged, to be refused by ``GenerationSettings``.
    """
    return int(seed) % SEEDS if isinstance(seed, Integral) and SEEDS <= int(seed) < 2**64 else seed


def _canonical(layer: Mapping[str, object]) -> dict[str, object]:
    """Check the names of one layer and put its sampler and schedule into their canonical spelling."""
    for name in layer:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
    settings = dict(layer)
    if isinstance(sampler := settings.get("sampler"), str):
        settings["sampler"], schedule = resolve(sampler)
        if schedule:
            settings.setdefault("schedule", schedule)
    if isinstance(schedule := settings.get("schedule"), str):
        settings["schedule"] = resolve_schedule(schedule)
    return settings
