"""The table of generation settings, and the merging of defaults, preset and overrides.

Each field of ``GenerationSettings`` is a row of the table: its type, its valid values, and a ``Setting`` with
its names in every interface. Command-line options, axes of sweeps, command lines in reports, recipes, presets
and the key of a batch are derived from it.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, get_type_hints

from ssd1b.decoding import RESIZE_MODES, fitting_size, identify_picture
from ssd1b.editing import is_edited, prompts_of
from ssd1b.embeddings import MOST_EMBEDDINGS, Embedding, read_embedding
from ssd1b.errors import InputError, shown, unknown
from ssd1b.inputs import InputFile
from ssd1b.loras import MOST, Lora, read_lora
from ssd1b.sampler_names import AUTOMATIC, SAMPLERS, SCHEDULES, resolve, resolve_schedule
from ssd1b.validation import Check, Items, OneOf, Range, Text, plain_type, validate, validated

ARTICLE = "Segmind, 'SSD-1B: Best settings for crafting compelling images'"
CARD = "model card of segmind/SSD-1B"
"""The two sources of advice on SSD-1B, as printed for the user."""

DEFAULT_MODEL = "mini-ssd-1b"
"""Built in, so that everything runs without a download."""

_SIZE = re.compile(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", re.IGNORECASE)

SEEDS = 2**32
"""Number of different seeds: torch's CPU generator uses the lowest 32 bits."""

RANDOM_SEED = -1
"""Stands for a random seed, as in AUTOMATIC1111."""

MAX_PIXELS = 2048 * 2048
"""Maximum area of an image: four times the area SDXL was trained on."""

SMALLEST_SIDE, LARGEST_SIDE, SIDE_MULTIPLE = 64, 4096, 8
"""Limits of an image's width and height in pixels; latents have an eighth of both."""

DEFAULT_STRENGTH = 0.6
"""Between a repainted surface and a new picture with the same composition; AUTOMATIC1111's default is 0.75,
diffusers' 0.3."""


class Start(NamedTuple):
    """Where in a schedule the generation from a picture starts.

    Attributes:
        schedule_steps: number of steps of the whole schedule.
        steps: number of them that are run, the last ones.
        from_noise: start from noise alone, as from text; otherwise from the picture with noise added to it.
    """

    schedule_steps: int
    steps: int
    from_noise: bool


def _diffusers_start(steps: int, strength: float) -> Start:
    """As ``get_timesteps``; at 1 diffusers' pipeline for inpainting starts from noise, and here every run."""
    return Start(steps, min(int(steps * strength), steps), from_noise=strength == 1)


def _a1111_start(steps: int, strength: float) -> Start:
    """As ``setup_img2img_steps`` of ``modules/sd_samplers_common.py`` without "do exactly the steps"."""
    return Start(steps, int(min(strength, 0.999) * steps) + 1, from_noise=False)


def _comfyui_start(steps: int, strength: float) -> Start:
    """As ``KSampler.set_steps`` of ``comfy/samplers.py``."""
    whole = strength > 0.9999
    runs = steps if strength > 0 else 0
    return Start(int(steps / strength) if runs and not whole else steps, runs, from_noise=False)


STRENGTH_STEPS: Mapping[str, Callable[[int, float], Start]] = MappingProxyType(
    {"diffusers": _diffusers_start, "a1111": _a1111_start, "comfyui": _comfyui_start}
)
"""Whose rule says how many steps a strength leaves to run. "20 steps at 0.5" are the last 10 of a schedule of
20 in diffusers, the last 11 of 20 in AUTOMATIC1111, and the last 20 of 40 in ComfyUI."""

UNSET = object()
"""Stands for a missing default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting's default and its names in every interface.

    Attributes:
        default: used if neither model, preset nor user sets it; ``UNSET`` if it depends on the model.
        before: value of images made before the setting existed, whose recipes lack it.
        flags: the command-line option. The first flag also names the sweep axis and appears in reports.
            Width and height share one.
        metavar: placeholder of the option's value in the help text.
        help: the option's help text.
        aliases: other names of the axis.
        example: example values of the axis.
        per_picture: may differ between the images of a batch.
        read: reads one item of a setting that is a list, whose option can be repeated; None for others.
        item: class of these items, made from a table as ``item(**table)``; written as text by ``str``.
        local: names files of this machine, so that a server takes none from its clients.
        a1111: key in AUTOMATIC1111's text.
        sdapi: field in AUTOMATIC1111's HTTP API, ``/sdapi/v1/txt2img``.
        openai: field in OpenAI's HTTP API, ``/v1/images/generations``.
        name: field of ``GenerationSettings``; derived from there, like the following two.
        kind: ``int``, ``float``, ``str``, ``tuple`` or ``InputFile``.
        is_name: the text is one of a fixed set of names.
    """

    default: object = UNSET
    before: object = UNSET
    flags: tuple[str, ...] = ()
    metavar: str = ""
    help: str = ""
    aliases: tuple[str, ...] = ()
    example: str = ""
    per_picture: bool = False
    read: Callable[[str], Any] | None = None
    item: Callable[..., Any] | None = None
    local: bool = False
    a1111: str | None = None
    sdapi: str | None = None
    openai: str | None = None
    name: str = ""
    kind: type = str
    is_name: bool = False


def _not_blank(prompt: str) -> None:
    if not prompt.strip():
        raise InputError("prompt is empty: describe an image")


def _rising(interval: tuple[float, float]) -> None:
    start, end = interval
    if start >= end:
        raise InputError(f"guidance_interval is {start:g} to {end:g}: the start must be less than the end")


def _different_words(given: tuple[Embedding, ...]) -> None:
    words = [each.word.lower() for each in given]
    if twice := [word for word in words if words.count(word) > 1]:
        raise InputError(f"embeddings have the word {shown(twice[0])} twice: give one of them another word")


Prompt = Annotated[Text, Check(_not_blank)]
Seed = Annotated[int, Range(0, SEEDS - 1, why="torch takes 32 bits, larger ones repeat")]
Pixels = Annotated[int, Range(SMALLEST_SIDE, LARGEST_SIDE, multiple_of=SIDE_MULTIPLE)]
Corner = Annotated[tuple[int, int], Range(0, 65_536), Setting(per_picture=True)]
Extent = Annotated[tuple[int, int], Range(1, 65_536), Setting(per_picture=True)]


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """All settings of one image, validated and complete, with canonical names."""

    # fmt: off
    prompt: Prompt
    """Description of the image, in the syntax of ``ssd1b.prompts``."""

    negative_prompt: Annotated[Text | None, Setting(
        default=None, flags=("--negative", "--negative-prompt"), metavar="TEXT", per_picture=True,
        sdapi="negative_prompt",
        help='What to avoid. "" is an empty negative prompt, which differs from none.',
    )]
    """What guidance moves away from. None is no negative prompt, for which SDXL uses zeros; "" is the
    encoding of an empty text, and gives a different image."""

    prompt_editing: Annotated[Annotated[str, OneOf("prompt editing", ("on", "off"))] | None, Setting(
        default=None, before="off", flags=("--prompt-editing",), metavar="on|off", example="on,off",
        per_picture=True,
        help="Whether [a:b:0.5] and [a|b] in prompts change them during the steps. Default: on if there are "
        "any.",
    )] = None
    """Whether prompts are read as in ``ssd1b.editing``: "on", or "off"; None is "on" if one changes."""

    guidance_scale: Annotated[float, Range(0, 100), Setting(
        flags=("--guidance", "--guidance-scale"), metavar="SCALE", aliases=("cfg", "cfg-scale"),
        example="2,5,9", a1111="CFG scale", sdapi="cfg_scale",
        help="Strength of classifier-free guidance; 1 is none.",
    )]
    """Strength of classifier-free guidance (2207.12598); 1 turns it off."""

    guidance_rescale: Annotated[float, Range(0, 1), Setting(
        default=0.0, flags=("--guidance-rescale",), metavar="SHARE", aliases=("rescale",), example="0,0.7",
        help="0 to 1: how far guidance is kept from overexposing.",
    )]
    """0 to 1: strength of the correction of overexposure by guidance (2305.08891, section 3.4)."""

    guidance_interval: Annotated[tuple[float, float], Range(0, 1), Check(_rising), Setting(
        default=(0.0, 1.0), flags=("--guidance-interval",), metavar="START END", aliases=("interval",),
        example="0-1,0.2-0.8", help="Apply guidance only between these points from noise (0) to image (1).",
    )]
    """Start and end of guidance, as fractions of the trajectory from noise (0) to image (1) (2404.07724)."""

    feature_reuse: Annotated[float, Range(0, 1), Setting(
        default=0.0, before=0.0, flags=("--feature-reuse",), metavar="SHARE", aliases=("reuse",),
        example="0,0.1,0.3",
        help="0 to 1: reuse deep features while shallow ones change less. Faster; changes the image.",
    )]
    """Largest relative change of the UNet's finest features, by their norm, up to which its deep features are
    reused (after 2312.00858); 0 computes them at every step."""

    loras: Annotated[tuple[Lora, ...], Items(0, MOST), Setting(
        default=(), before=(), flags=("--lora",), metavar="FILE[:UNET[:TEXT]]", example="none",
        read=read_lora, item=Lora, local=True,
        help="A LoRA or another adapter, its strength in the UNet and in the text encoders; may be repeated.",
    )] = ()
    """Adapters that are merged into the model's weights. Their order does not matter."""

    embeddings: Annotated[tuple[Embedding, ...], Items(0, MOST_EMBEDDINGS), Check(_different_words), Setting(
        default=(), before=(), flags=("--embedding",), metavar="FILE[:WORD]", example="none",
        read=read_embedding, item=Embedding, local=True,
        help="An embedding (textual inversion), and the word for it in prompts; may be repeated.",
    )] = ()
    """Embeddings, whose vectors take the place of their words in prompts."""

    steps: Annotated[int, Range(1, 1000), Setting(
        default=25,  # the article: more steps make no significant difference
        flags=("--steps",), metavar="N", example="10-30 (+10)", a1111="Steps", sdapi="steps",
        help="Number of denoising steps.",
    )]
    """Number of denoising steps."""

    sampler: Annotated[str, OneOf("sampler", SAMPLERS), Setting(
        default="euler",  # the scheduler that SDXL and its distilled models are published with
        flags=("--sampler",), metavar="NAME", aliases=("scheduler",), a1111="Sampler", sdapi="sampler_name",
        help=f"{', '.join(SAMPLERS)}; or AUTOMATIC1111's, ComfyUI's and diffusers' names.",
    )]
    """A name of ``sampler_names.SAMPLERS``."""

    schedule: Annotated[Annotated[str, OneOf("schedule", SCHEDULES)] | None, Setting(
        default=None, flags=("--schedule",), metavar="NAME", a1111="Schedule type", sdapi="scheduler",
        help=f"{', '.join(SCHEDULES)}; {AUTOMATIC} is the sampler's default, or else the model's.",
    )]
    """A name of ``sampler_names.SCHEDULES``; None is the sampler's own, or else the model's."""

    seed: Annotated[Seed, Setting(
        flags=("--seed",), metavar="N", example="1-4", per_picture=True, a1111="Seed", sdapi="seed",
        help="Seed of the first image; each further image adds 1. -1, the default, is random.",
    )]
    """Seed of the image's noise."""

    width: Annotated[Pixels, Setting(
        default=1024, flags=("--size",), metavar="WIDTHxHEIGHT", example="512,512x768", a1111="Size",
        sdapi="width", openai="size", help="Size in pixels; one number for a square.",
    )]
    """Width of the image in pixels."""

    height: Annotated[Pixels, Setting(
        default=1024, flags=("--size",), a1111="Size", sdapi="height", openai="size"
    )]
    """Height of the image in pixels."""

    init_image: Annotated[InputFile | None, Setting(
        default=None, before=None, flags=("--from", "--init-image"), metavar="PICTURE", per_picture=True,
        local=True, example="sketch.png,photo.jpg",
        help="Start from this PNG, JPEG or WebP. Without --size, the image gets its size.",
    )]
    """The picture to start from; None starts from noise. In Python also a path."""

    mask: Annotated[InputFile | None, Setting(
        default=None, before=None, flags=("--mask",), metavar="PICTURE", per_picture=True, local=True,
        example="none,sky.png", help="Change --from only where this picture is white; grey changes it less.",
    )]
    """Where ``init_image`` is repainted: white, and in grey parts during the last steps only; black is kept.
    None repaints everything. In Python also a path."""

    strength: Annotated[Annotated[float, Range(0, 1)] | None, Setting(
        default=None, before=None, flags=("--strength", "--denoising-strength"), metavar="SHARE",
        example="0.3,0.6,0.9", a1111="Denoising strength", sdapi="denoising_strength",
        help=f"0 to 1: how much of --from is changed; 1 keeps nothing. Default: {DEFAULT_STRENGTH}.",
    )]
    """Share of the schedule that is run on ``init_image`` with noise; None without one."""

    strength_steps: Annotated[str, OneOf("strength_steps", STRENGTH_STEPS), Setting(
        default="diffusers", before="diffusers", flags=("--strength-steps",), metavar="NAME",
        example="diffusers,a1111,comfyui",
        help="Whose rule says how many steps --strength runs: diffusers, a1111 or comfyui.",
    )]
    """A name of ``STRENGTH_STEPS``."""

    resize_mode: Annotated[str, OneOf("resize mode", RESIZE_MODES), Setting(
        default="crop", before="crop", flags=("--resize-mode",), metavar="NAME", example="crop,stretch",
        help="crop or stretch: how --from is fitted to a --size of another shape.",
    )]
    """A name of ``decoding.RESIZE_MODES``."""

    original_size: Extent
    """Micro-conditioning (2307.01952, section 2.2): (height, width) of the original image, in pixels."""

    crop_top_left: Corner
    """Micro-conditioning: (top, left) of the crop in the original image, in pixels."""

    target_size: Extent
    """Micro-conditioning: (height, width) to which the crop was scaled, in pixels."""
    # fmt: on

    def __post_init__(self) -> None:
        """Check width and height together, and what belongs to ``init_image``."""
        _check_area(self.width, self.height)
        if self.prompt_editing is None:
            edited = is_edited(self.prompt) or is_edited(self.negative_prompt or "")
            object.__setattr__(self, "prompt_editing", "on" if edited else "off")
        if self.init_image is None:
            for name in ("mask", "strength"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} needs init_image (--from), the picture to start from")
            return
        if self.strength is None:
            object.__setattr__(self, "strength", DEFAULT_STRENGTH)
        if self.start.steps == 0:
            raise InputError(
                f"strength is {self.strength:g}: of {self.steps} steps none is left to run; "
                f"it must be at least {1 / self.steps:.3g}, or steps higher"
            )

    def prompts(self) -> list[tuple[str, str | None]]:
        """Return prompt and negative prompt of each step; of a single one if they do not change."""
        if self.prompt_editing != "on":
            return [(self.prompt, self.negative_prompt)]
        negative = (None,) if self.negative_prompt is None else prompts_of(self.negative_prompt, self.steps)
        return list(zip(prompts_of(self.prompt, self.steps), cycle(negative), strict=False))

    @property
    def start(self) -> Start:
        """The part of the schedule that is run."""
        if self.init_image is None or self.strength is None:
            return Start(self.steps, self.steps, from_noise=True)
        return STRENGTH_STEPS[self.strength_steps](self.steps, self.strength)


def _check_area(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"size is {width}x{height}: at most {MAX_PIXELS} pixels are allowed, as in 2048x2048"
        )


def _table() -> dict[str, Setting]:
    table = {}
    for name, hint in get_type_hints(GenerationSettings, include_extras=True).items():
        plain, metadata = plain_type(hint)
        is_name = any(isinstance(each, OneOf) for each in metadata)
        for each in metadata:
            if isinstance(each, Setting):
                table[name] = replace(each, name=name, kind=plain, is_name=is_name)
    return table


def _ranges() -> dict[str, Range]:
    hints = get_type_hints(GenerationSettings, include_extras=True)
    return {
        name: each for name, hint in hints.items() for each in plain_type(hint)[1] if isinstance(each, Range)
    }


SETTINGS: Mapping[str, Setting] = MappingProxyType(_table())
"""All settings that defaults, presets and overrides can set, which is everything but the prompt."""

RANGES: Mapping[str, Range] = MappingProxyType(_ranges())
"""The range of each setting that is a number or two."""


def _options() -> dict[str, tuple[Setting, ...]]:
    options: dict[str, tuple[Setting, ...]] = {}
    for setting in SETTINGS.values():
        for flag in setting.flags[:1]:
            name = flag.removeprefix("--")
            options[name] = (*options.get(name, ()), setting)
    return options


OPTIONS: Mapping[str, tuple[Setting, ...]] = MappingProxyType(_options())
"""Settings by the name of their command-line option and sweep axis; ``size`` has two."""

INPUTS = tuple(name for name, each in SETTINGS.items() if each.kind is InputFile)
"""Settings that are pictures."""

LISTS = tuple(name for name, each in SETTINGS.items() if each.read)
"""Settings that are lists, whose items may be given as text."""

PICTURE_SETTINGS = (*INPUTS, "strength", "strength_steps", "resize_mode")
"""Settings that have a meaning only with ``init_image``."""

DEFAULTS: Mapping[str, object] = MappingProxyType(
    {name: each.default for name, each in SETTINGS.items() if each.default is not UNSET}
)

BEFORE: Mapping[str, Any] = MappingProxyType(
    {name: each.before for name, each in SETTINGS.items() if each.before is not UNSET}
)
"""Values of settings that recipes and stores of earlier versions lack."""

GUIDANCE_DEFAULTS: Mapping[str, float] = MappingProxyType({
    "ssd-1b": 9.0,  # its model card: "use negative prompting, and a CFG around 9.0"
    "vega": 9.0,  # same model card advice
    # Within SDXL's usual 5 to 7, and diffusers' default, which is the only source for KOALA.
    "sdxl": 5.0,
    "koala-1b": 5.0,
    "koala-700m": 5.0,
})  # fmt: skip
"""Default guidance scale of each model family, a name of ``layouts.UNETS``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Named settings with their source."""

    name: Text
    source: Text
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Replace names by their canonical form; InputError for an unknown name."""
        object.__setattr__(self, "settings", MappingProxyType(_canonical(self.settings)))


def resolve_settings(
    prompt: str,
    *,
    family: str,
    model_defaults: Mapping[str, object],
    preset: Preset | None,
    **overrides: object,
) -> GenerationSettings:
    """Merge all layers of settings. Precedence, highest first: overrides, preset, model, family.

    Sampler and schedule accept any name that ``sampler_names`` knows ("DPM++ 2M Karras"). If neither preset
    nor overrides set a size, it is that of ``init_image``, in multiples of 8; a picture beyond the limits of
    an image is scaled down to the area of the model's size. Unset micro-conditioning defaults to an uncropped
    image at its own size.

    Args:
        prompt: description of the image.
        family: a name of ``layouts.UNETS``.
        model_defaults: the model's own settings, including its size if that is not 1024.
        preset: the preset, if any.
        overrides: the user's settings. One of the layers must have a seed, -1 for a random one. A setting
            that is present counts as set: ``negative_prompt=None`` overrides a preset.

    Raises:
        InputError: a setting is unknown or its value is not allowed.
    """
    if family not in GUIDANCE_DEFAULTS:
        raise unknown("model family", family, GUIDANCE_DEFAULTS)
    settings: dict[str, Any] = {**DEFAULTS, "guidance_scale": GUIDANCE_DEFAULTS[family]}
    chosen = _canonical(preset.settings if preset else {}) | _canonical(overrides)
    settings |= _canonical(model_defaults)
    if isinstance(picture := chosen.get("init_image"), InputFile) and not {"width", "height"} & chosen.keys():
        settings |= _size_of(picture, settings["width"] * settings["height"])
    settings = with_drawn_seed(settings | chosen)
    size = (settings["height"], settings["width"])
    uncropped: dict[str, Any] = {"original_size": size, "crop_top_left": (0, 0), "target_size": size}
    return GenerationSettings(prompt=prompt, **(uncropped | settings))


def check_overrides(overrides: Mapping[str, object]) -> dict[str, Any]:
    """Validate some of the settings without prompt and model.

    Returns:
        The settings with canonical names and a concrete seed.

    Raises:
        InputError: a setting is unknown or its value is not allowed.
    """
    settings = validate(GenerationSettings, with_drawn_seed(_canonical(overrides)), partial=True)
    _check_area(settings.get("width", 0), settings.get("height", 0))
    return settings


def _size_of(picture: InputFile, area: int) -> dict[str, int]:
    width, height = fitting_size(
        picture, area, multiple=SIDE_MULTIPLE, low=SMALLEST_SIDE, high=LARGEST_SIDE, most=MAX_PIXELS
    )
    return {"width": width, "height": height}


def read_size(text: str) -> dict[str, int]:
    """Parse "1024x768" (width first), or one number for a square.

    Raises:
        InputError: the text is neither.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"size is {shown(text)}: it must be like 1024x768, or one number for a square")
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def random_seed() -> int:
    """Choose a random seed."""
    return secrets.randbelow(SEEDS)


def with_drawn_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace ``RANDOM_SEED`` by a random seed."""
    seed = settings.get("seed")
    is_random = isinstance(seed, Integral) and seed == RANDOM_SEED
    return {**settings, "seed": random_seed()} if is_random else dict(settings)


def equal_seed(seed: Any) -> Any:
    """Reduce a 64-bit seed, as other programs and earlier versions wrote it, to the seed with the same noise.

    Everything else is returned unchanged, and ``GenerationSettings`` refuses it.
    """
    return int(seed) % SEEDS if isinstance(seed, Integral) and SEEDS <= int(seed) < 2**64 else seed


def identified(settings: Mapping[str, object]) -> dict[str, object]:
    """Replace the paths of pictures, and the tables of ``with_tables``, by ``InputFile``s.

    Raises:
        InputError: a file does not exist, is no picture, or is too large.
    """
    return {name: _identified(each) if name in INPUTS else each for name, each in settings.items()}


def _identified(value: object) -> object:
    if isinstance(value, str | Path):
        return identify_picture(str(value))
    return InputFile(**value) if isinstance(value, Mapping) else value


def _canonical(layer: Mapping[str, object]) -> dict[str, object]:
    """Check the names in one layer; give sampler and schedule canonical names, and identify files."""
    for name in layer:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
    settings = identified(layer)
    for name in LISTS:
        read = SETTINGS[name].read
        if isinstance(items := settings.get(name), list | tuple) and read is not None:
            settings[name] = tuple(read(each) if isinstance(each, str) else each for each in items)
    if isinstance(sampler := settings.get("sampler"), str):
        settings["sampler"], schedule = resolve(sampler)
        if schedule:
            settings.setdefault("schedule", schedule)
    if isinstance(schedule := settings.get("schedule"), str):
        settings["schedule"] = resolve_schedule(schedule)
    return settings
