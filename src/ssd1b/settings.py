"""The table of generation settings, and the merging of defaults, preset and overrides.

Each field of ``GenerationSettings`` is a row of the table: its type, its valid values, and a ``Setting`` with
its names in every interface. Command-line options, axes of sweeps, command lines in reports, recipes, presets
and the key of a batch are derived from it.
"""

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, get_type_hints

from ssd1b.canvas import (
    DEFAULT_SEAM,
    MASK_AREAS,
    MASK_CHANGES,
    MASK_CONTENTS,
    OUTPAINT_FILLS,
    Layout,
    read_sides,
    write_sides,
)
from ssd1b.controls import MOST as MOST_CONTROLS
from ssd1b.controls import Control, read_control
from ssd1b.decoding import RESIZE_MODES, fitting_size, identify_picture
from ssd1b.editing import is_edited, prompts_of
from ssd1b.embeddings import MOST_EMBEDDINGS, Embedding, read_embedding
from ssd1b.errors import InputError, prefix_errors, shown, unknown
from ssd1b.few_steps import Recognised, recognise_file
from ssd1b.image_prompts import MOST_IMAGE_PROMPTS, ImagePrompt, read_image_prompt
from ssd1b.inputs import InputFile
from ssd1b.loras import MOST, Lora, read_lora
from ssd1b.numerals import whole_number
from ssd1b.sampler_names import AUTOMATIC, SAMPLERS, SCHEDULES, resolve, resolve_schedule
from ssd1b.upscalers import DEFAULT_UPSCALER, UPSCALERS, find_upscaler
from ssd1b.validation import Check, Items, OneOf, Range, Text, plain_type, validate, validated

ARTICLE = "Segmind, 'SSD-1B: Best settings for crafting compelling images'"
CARD = "model card of segmind/SSD-1B"
"""The two sources of advice on SSD-1B, as printed for the user."""

DEFAULT_MODEL = "mini-ssd-1b"
"""Built in, so that everything runs without a download."""

_SIZE = re.compile(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", re.IGNORECASE)

SEEDS = 2**32
"""Number of different seeds: torch's CPU generator uses the lowest 32 bits."""

SEED_SETTINGS = ("seed", "variation_seed")

RANDOM_SEED = -1
"""Stands for a random seed, as in AUTOMATIC1111."""

MAX_PIXELS = 2048 * 2048
"""Maximum area of an image: four times the area SDXL was trained on."""

SMALLEST_SIDE, LARGEST_SIDE, SIDE_MULTIPLE = 64, 4096, 8
"""Limits of an image's width and height in pixels; latents have an eighth of both."""

MAX_STEPS = 1000
"""The most steps: one for each of SDXL's timesteps."""

DEFAULT_STRENGTH = 0.6
"""Between a repainted surface and a new picture with the same composition; AUTOMATIC1111's default is 0.75,
diffusers' 0.3."""


DEFAULT_HIRES_STRENGTH = 0.5
"""Adds detail and keeps the composition of the first pass; AUTOMATIC1111's default for its second is 0.7."""


DEFAULT_OUTPAINT_STRENGTH = 0.9
"""With less, the repeated pixels of the new sides remain visible."""


MOST_SCHEDULE_STEPS = 10_000
"""Longest schedule of which the last steps are run; SDXL has 1000 noise levels."""


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
    if strength > 0 and steps / strength > MOST_SCHEDULE_STEPS:
        raise InputError(
            f"strength is {strength:g}: {steps} steps would be the last of a schedule of more than "
            f"{MOST_SCHEDULE_STEPS}; it must be higher"
        )
    whole = strength > 0.9999
    runs = steps if strength > 0 else 0
    return Start(int(steps / strength) if runs and not whole else steps, runs, from_noise=False)


STRENGTH_STEPS: Mapping[str, Callable[[int, float], Start]] = MappingProxyType(
    {"diffusers": _diffusers_start, "a1111": _a1111_start, "comfyui": _comfyui_start}
)
"""Whose rule says how many steps a strength leaves to run. "20 steps at 0.5" are the last 10 of a schedule of
20 in diffusers, the last 11 of 20 in AUTOMATIC1111, and the last 20 of 40 in ComfyUI."""


class Pass(NamedTuple):
    """One run of the sampler: an image has one, or two with the hires fix.

    Attributes:
        settings: size, prompts, sampler and guidance of the run.
        start: the part of the schedule that is run.
    """

    settings: "GenerationSettings"
    start: Start


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
        identify: turns a text into the value of a setting that is a file, or may be one.
        local: names files of this machine, so that a server takes it from clients only where its API has
            another way to give it (``server.schemas.FILE_SETTINGS``).
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
    identify: Callable[[str], Any] | None = None
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


def read_timesteps(text: str) -> tuple[int, ...]:
    """Parse "999,749,499,249"; spaces also separate.

    Raises:
        InputError: they are no whole numbers from 0, or do not fall.
    """
    with prefix_errors("timesteps"):
        found = tuple(whole_number(each) for each in re.split(r"[\s,]+", text.strip()))
    if len(found) > MAX_STEPS or min(found) < 0 or any(b >= a for a, b in pairwise(found)):
        raise InputError(
            f"timesteps is {shown(text)}: it must be up to {MAX_STEPS} falling numbers, like 999,749,499,249"
        )
    return found


def _falling(timesteps: str) -> None:
    read_timesteps(timesteps)


def _different_words(given: tuple[Any, ...]) -> None:
    words = [each.word.lower() for each in given]
    if twice := [word for word in words if words.count(word) > 1]:
        raise InputError(f"embeddings have the word {shown(twice[0])} twice: give one of them another word")


Prompt = Annotated[Text, Check(_not_blank)]
Count = Annotated[int, Range(1, 10_000)]
"""Images of one prompt."""
Seed = Annotated[int, Range(0, SEEDS - 1, why="torch takes 32 bits, larger ones repeat")]
Pixels = Annotated[int, Range(SMALLEST_SIDE, LARGEST_SIDE, multiple_of=SIDE_MULTIPLE)]
Sampler = Annotated[str, OneOf("sampler", SAMPLERS)]
Schedule = Annotated[str, OneOf("schedule", SCHEDULES)]
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

    controls: Annotated[tuple[Control, ...], Items(0, MOST_CONTROLS), Setting(
        default=(), before=(), flags=("--control",), metavar="MODEL:PICTURE[:SCALE[:START[:END]]][:canny]",
        example="none", read=read_control, item=Control, local=True,
        help="A ControlNet, Control-LoRA or T2I-Adapter and the picture it follows; may be repeated. "
        "canny takes its edges; guess and bgr are further words.",
    )] = ()
    """Networks that guide the image by pictures, which are fitted to its size by ``resize_mode``."""

    image_prompts: Annotated[tuple[ImagePrompt, ...], Items(0, MOST_IMAGE_PROMPTS), Setting(
        default=(), before=(), flags=("--ip-adapter",),
        metavar="FILE:PICTURE[:ENCODER][:SCALE[:START[:END]]][:style]", example="none",
        read=read_image_prompt, item=ImagePrompt, local=True,
        help="An IP-Adapter and the picture that the image is like; may be repeated. The image encoder is "
        "found beside FILE, or given. style and layout limit it to parts of the UNet.",
    )] = ()
    """Pictures that are shown to the model by IP-Adapters, beside the prompt."""

    embeddings: Annotated[tuple[Embedding, ...], Items(0, MOST_EMBEDDINGS), Check(_different_words), Setting(
        default=(), before=(), flags=("--embedding",), metavar="FILE[:WORD]", example="none",
        read=read_embedding, item=Embedding, local=True,
        help="An embedding (textual inversion), and the word for it in prompts; may be repeated.",
    )] = ()
    """Embeddings, whose vectors take the place of their words in prompts."""

    steps: Annotated[int, Range(1, MAX_STEPS), Setting(
        default=25,  # the article: more steps make no significant difference
        flags=("--steps",), metavar="N", example="10-30 (+10)", a1111="Steps", sdapi="steps",
        help="Number of denoising steps.",
    )]
    """Number of denoising steps."""

    sampler: Annotated[Sampler, Setting(
        default="euler",  # the scheduler that SDXL and its distilled models are published with
        flags=("--sampler",), metavar="NAME", aliases=("scheduler",), a1111="Sampler", sdapi="sampler_name",
        help=f"{', '.join(SAMPLERS)}; or AUTOMATIC1111's, ComfyUI's and diffusers' names.",
    )]
    """A name of ``sampler_names.SAMPLERS``."""

    schedule: Annotated[Schedule | None, Setting(
        default=None, flags=("--schedule",), metavar="NAME", a1111="Schedule type", sdapi="scheduler",
        help=f"{', '.join(SCHEDULES)}; {AUTOMATIC} is the sampler's default, or else the model's.",
    )]
    """A name of ``sampler_names.SCHEDULES``; None is the sampler's own, or else the model's."""

    timesteps: Annotated[Annotated[Text, Check(_falling)] | None, Setting(
        default=None, before=None, flags=("--timesteps",), metavar="N,N,...",
        example="999 749 499 249,999 759 499 259",
        help="The model's timesteps to visit, from noise to image; sets --steps, and replaces --schedule.",
    )] = None
    """Falling timesteps of the model, one for each step, separated by commas (in sweeps also by spaces), as
    a few-step model was trained on: "999,749,499,249". None takes those of the schedule."""

    gamma: Annotated[float, Range(0, 1), Setting(
        default=0.3, before=0.3, flags=("--gamma",), metavar="SHARE", example="0,0.3,1",
        help="0 to 1: of sampler tcd, how much noise each step adds again; more steps need more.",
    )] = 0.3
    """0 to 1: the stochastic parameter of sampler ``tcd`` (2402.19159, section 4.2); others ignore it. 0.3 is
    the value of its authors' examples."""

    seed: Annotated[Seed, Setting(
        flags=("--seed",), metavar="N", example="1-4", per_picture=True, a1111="Seed", sdapi="seed",
        help="Seed of the first image; each further image adds 1. -1, the default, is random.",
    )]
    """Seed of the image's noise."""

    variation_strength: Annotated[float, Range(0, 1), Setting(
        default=0.0, before=0.0, flags=("--variation-strength", "--subseed-strength"), metavar="SHARE",
        example="0,0.1,0.2", per_picture=True, a1111="Variation seed strength",
        help="0 to 1: how far the noise is turned from that of --seed to that of --variation-seed.",
    )]
    """0 is the noise of ``seed``, 1 that of ``variation_seed``; see ``diffusion.noise.slerp``."""

    variation_seed: Annotated[Seed, Setting(
        default=0, before=0, flags=("--variation-seed", "--subseed"), metavar="N", example="1-4",
        per_picture=True, a1111="Variation seed",
        help="Seed of the variation. With --variation-strength, each further image adds 1 to it and not to "
        "--seed. -1 is random.",
    )]
    """Seed of the noise that is mixed in; 0 if ``variation_strength`` is 0, since it then has no effect."""

    seed_resize_width: Annotated[Pixels | None, Setting(
        default=None, before=None, flags=("--seed-resize-from",), metavar="WIDTHxHEIGHT",
        example="512,512x768", per_picture=True, a1111="Seed resize from", sdapi="seed_resize_from_w",
        help="Put the seed's noise of this size in the middle: another --size gives a similar image.",
    )]
    """Width in pixels of an image whose noise is put in the middle of this one's, see
    ``diffusion.noise.centred``; None takes the noise of the image's own size."""

    seed_resize_height: Annotated[Pixels | None, Setting(
        default=None, before=None, flags=("--seed-resize-from",), per_picture=True,
        a1111="Seed resize from", sdapi="seed_resize_from_h",
    )]
    """Height in pixels of that image."""

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
        local=True, identify=identify_picture, example="sketch.png,photo.jpg",
        help="Start from this PNG, JPEG or WebP. Without --size, the image gets its size.",
    )]
    """The picture to start from; None starts from noise. In Python also a path."""

    mask: Annotated[InputFile | None, Setting(
        default=None, before=None, flags=("--mask",), metavar="PICTURE", per_picture=True, local=True,
        identify=identify_picture, example="none,sky.png",
        help="Change --from only where this picture is white; grey changes it less.",
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
        help="crop or stretch: how --from and pictures of --control are fitted to a size of another shape.",
    )]
    """A name of ``decoding.RESIZE_MODES``."""

    mask_change: Annotated[str, OneOf("mask change", MASK_CHANGES), Setting(
        default="white", before="white", flags=("--mask-change",), metavar="NAME", example="white,black",
        help="white or black: which part of --mask is changed.",
    )]
    """A name of ``canvas.MASK_CHANGES``."""

    mask_blur: Annotated[Annotated[float, Range(0, 256)] | None, Setting(
        default=None, before=None, flags=("--mask-blur",), metavar="PIXELS", example="0,4,16",
        help=f"Soften the edge of --mask. Default: 0; with --outpaint {DEFAULT_SEAM:g}.",
    )]
    """Standard deviation of a Gaussian blur of the mask, in pixels of the picture under it."""

    mask_content: Annotated[str, OneOf("mask content", MASK_CONTENTS), Setting(
        default="original", before="original", flags=("--mask-content",), metavar="NAME",
        example="original,fill,noise,nothing",
        help=f"{', '.join(MASK_CONTENTS)}: what is under --mask before noise is added.",
    )]
    """A name of ``canvas.MASK_CONTENTS``."""

    mask_area: Annotated[str, OneOf("mask area", MASK_AREAS), Setting(
        default="whole", before="whole", flags=("--mask-area",), metavar="NAME", example="whole,masked",
        help="masked: generate only what surrounds --mask, at the full --size, and put it back.",
    )]
    """A name of ``canvas.MASK_AREAS``. With "masked" the image has the size of ``init_image``."""

    mask_padding: Annotated[int, Range(0, 4096), Setting(
        default=32, before=32, flags=("--mask-padding",), metavar="PIXELS", example="0,32,64",
        help="Pixels around the mask that are generated with it, for --mask-area masked.",
    )]
    """Pixels of the picture around the mask that ``mask_area`` "masked" shows the model."""

    outpaint: Annotated[Annotated[Text, Check(read_sides)] | None, Setting(
        default=None, before=None, flags=("--outpaint",), metavar="SIDES", example="left=64,right=64",
        help="Extend --from by these pixels: left=128,right=128, also top and bottom.",
    )]
    """Sides to extend, as "left=128,top=64"; see ``canvas.read_sides``. ``width`` and ``height`` include
    them."""

    outpaint_fill: Annotated[str, OneOf("outpaint fill", OUTPAINT_FILLS), Setting(
        default="edge", before="edge", flags=("--outpaint-fill",), metavar="NAME", example="edge,reflect",
        help="edge or reflect: what new sides hold before noise is added; or see --mask-content.",
    )]
    """A name of ``canvas.OUTPAINT_FILLS``."""

    hires_scale: Annotated[Annotated[float, Range(1, 16)] | None, Setting(
        default=None, before=None, flags=("--hires-scale", "--hr-scale"), metavar="FACTOR", example="1.5,2",
        a1111="Hires upscale",
        help="Hires fix: enlarge the finished image this many times, and draw over it in a second pass.",
    )]
    """Factor by which a first image of ``width`` x ``height`` is enlarged before a second pass. None, and no
    ``hires_width``: there is one pass."""

    hires_width: Annotated[Pixels | None, Setting(
        default=None, before=None, flags=("--hires-size",), metavar="WIDTHxHEIGHT", example="1536,1536x1024",
        a1111="Hires resize",
        help="Hires fix: the size of the second pass; another shape than --size is cut.",
    )]
    """Width of the second pass in pixels, instead of a factor. Without one of the two sides, the first
    pass's shape is kept."""

    hires_height: Annotated[Pixels | None, Setting(
        default=None, before=None, flags=("--hires-size",), a1111="Hires resize"
    )]
    """Height of the second pass in pixels."""

    hires_strength: Annotated[Annotated[float, Range(0, 1)] | None, Setting(
        default=None, before=None, flags=("--hires-strength",), metavar="SHARE", example="0.3,0.5,0.7",
        a1111="Denoising strength",
        help=f"0 to 1: how much the second pass changes. Default: {DEFAULT_HIRES_STRENGTH}.",
    )]
    """Where in its schedule the second pass starts; it always runs all of its steps, as in AUTOMATIC1111 and
    ComfyUI. None without a second pass."""

    hires_upscaler: Annotated[Annotated[str, OneOf("upscaler", UPSCALERS)] | InputFile | None, Setting(
        default=None, before=None, flags=("--hires-upscaler", "--hr-upscaler"), metavar="NAME|FILE",
        identify=find_upscaler, example="lanczos,latent-bicubic", a1111="Hires upscaler",
        help=f"{', '.join(UPSCALERS)}; AUTOMATIC1111's names; or the file of a network such as ESRGAN. "
        f"Default: {DEFAULT_UPSCALER}.",
    )]
    """A name of ``upscalers.UPSCALERS``, or a network; None without a second pass."""

    hires_steps: Annotated[Annotated[int, Range(1, 1000)] | None, Setting(
        default=None, before=None, flags=("--hires-steps",), metavar="N", example="5,10,20",
        a1111="Hires steps", help="Number of steps of the second pass. Default: as the first.",
    )]
    """Number of denoising steps of the second pass; None is ``steps``, like all of the following."""

    hires_sampler: Annotated[Sampler | None, Setting(
        default=None, before=None, flags=("--hires-sampler",), metavar="NAME", example="euler,dpmpp_2m",
        a1111="Hires sampler", help="Sampler of the second pass. Default: as the first.",
    )]
    """Sampler of the second pass."""

    hires_schedule: Annotated[Schedule | None, Setting(
        default=None, before=None, flags=("--hires-schedule",), metavar="NAME", example="karras,normal",
        a1111="Hires schedule type", help="Schedule of the second pass. Default: as the first.",
    )]
    """Schedule of the second pass."""

    hires_guidance_scale: Annotated[Annotated[float, Range(0, 100)] | None, Setting(
        default=None, before=None, flags=("--hires-guidance",), metavar="SCALE", example="3,5,9",
        a1111="Hires CFG Scale", help="Guidance scale of the second pass. Default: as the first.",
    )]
    """Guidance scale of the second pass."""

    hires_prompt: Annotated[Annotated[Text, Check(_not_blank)] | None, Setting(
        default=None, before=None, flags=("--hires-prompt",), metavar="TEXT", example="a lighthouse,a castle",
        a1111="Hires prompt", help="Prompt of the second pass. Default: as the first.",
    )]
    """Prompt of the second pass."""

    hires_negative_prompt: Annotated[Text | None, Setting(
        default=None, before=None, flags=("--hires-negative",), metavar="TEXT", example="blurry,noisy",
        a1111="Hires negative prompt", help="Negative prompt of the second pass. Default: as the first.",
    )]
    """Negative prompt of the second pass."""

    original_size: Extent
    """Micro-conditioning (2307.01952, section 2.2): (height, width) of the original image, in pixels."""

    crop_top_left: Corner
    """Micro-conditioning: (top, left) of the crop in the original image, in pixels."""

    target_size: Extent
    """Micro-conditioning: (height, width) to which the crop was scaled, in pixels."""
    # fmt: on

    def __post_init__(self) -> None:
        """Check the size, and what belongs to ``init_image``, ``controls`` and the hires fix."""
        _check_area(self.width, self.height)
        check_needs({name: getattr(self, name) for name in ("init_image", *HIRES_SIZES, *_NEEDS)})
        if self.variation_strength == 0:
            object.__setattr__(self, "variation_seed", 0)
        if self.hires:
            self._complete_hires()
        self._check_timesteps()
        self._check_canvas()
        if self.controls and self.feature_reuse:
            raise InputError("feature_reuse must be 0 with controls, which change deep features in each step")
        if self.prompt_editing is None:
            texts = (self.prompt, self.negative_prompt, self.hires_prompt, self.hires_negative_prompt)
            edited = any(is_edited(each or "") for each in texts)
            object.__setattr__(self, "prompt_editing", "on" if edited else "off")
        if self.init_image is None:
            return
        if self.strength is None:
            default = DEFAULT_STRENGTH if self.outpaint is None else DEFAULT_OUTPAINT_STRENGTH
            object.__setattr__(self, "strength", default)
        if self.start.steps == 0:
            raise InputError(
                f"strength is {self.strength:g}: of {self.steps} steps none is left to run; "
                f"it must be at least {1 / self.steps:.3g}, or steps higher"
            )

    def _check_canvas(self) -> None:
        if self.mask_area == "masked" and (self.mask is None or self.outpaint is not None):
            raise InputError("mask_area masked needs mask (--mask), and excludes outpaint (--outpaint)")
        if self.outpaint is not None:
            left, top, right, bottom = read_sides(self.outpaint)
            object.__setattr__(self, "outpaint", write_sides((left, top, right, bottom)))
            inner = (self.width - left - right, self.height - top - bottom)
            if min(inner) < SMALLEST_SIDE:
                raise InputError(
                    f"outpaint {self.outpaint} leaves {inner[0]}x{inner[1]} of {self.width}x{self.height} "
                    f"for the picture: a side must have at least {SMALLEST_SIDE} pixels"
                )

    @property
    def pictures(self) -> tuple[InputFile, ...]:
        """The pictures that it is generated from, also those of ``controls`` and ``image_prompts``."""
        inside = (each.picture for each in (*self.controls, *self.image_prompts))
        return tuple(each for each in (self.init_image, self.mask, *inside) if each is not None)

    @property
    def layout(self) -> Layout:
        """How ``init_image`` and ``mask`` are laid out."""
        return Layout(*(getattr(self, name) for name in Layout._fields))

    def _complete_hires(self) -> None:
        if self.hires_width or self.hires_height:
            width = self.hires_width or _floor((self.hires_height or 0) * self.width / self.height)
            height = self.hires_height or _floor((self.hires_width or 0) * self.height / self.width)
            object.__setattr__(self, "hires_width", width)
            object.__setattr__(self, "hires_height", height)
        for name, default in (("strength", DEFAULT_HIRES_STRENGTH), ("upscaler", DEFAULT_UPSCALER)):
            if getattr(self, f"hires_{name}") is None:
                object.__setattr__(self, f"hires_{name}", default)
        if not self.hires_strength:
            raise InputError("hires_strength is 0: it must be more, since the second pass would not start")
        with prefix_errors("second pass"):
            _comfyui_start(self.hires_steps or self.steps, self.hires_strength)
        width, height = self.final_size
        if max(width, height) > LARGEST_SIDE or min(width, height) < SMALLEST_SIDE:
            raise InputError(
                f"the hires fix makes {width}x{height}: a side must be from {SMALLEST_SIDE} to {LARGEST_SIDE}"
            )
        _check_area(width, height, "the size after the hires fix")

    @property
    def hires(self) -> bool:
        """Whether there is a second pass."""
        return any(each is not None for each in (self.hires_scale, self.hires_width, self.hires_height))

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the last pass in pixels."""
        if self.hires_width and self.hires_height:
            return self.hires_width, self.hires_height
        scale = self.hires_scale or 1.0
        return _floor(self.width * scale), _floor(self.height * scale)

    def _check_timesteps(self) -> None:
        if self.timesteps is None:
            return
        if len(self.timestep_list) != self.steps:
            raise InputError(
                f"steps is {self.steps}, but there are {len(self.timestep_list)} timesteps: leave steps out"
            )
        if self.schedule is not None:
            raise InputError(f"timesteps replace the schedule {self.schedule!r}: leave one of them out")
        if self.init_image is not None and self.strength_steps == "comfyui":
            raise InputError(
                "strength_steps 'comfyui' stretches the schedule, and timesteps are fixed: take 'diffusers'"
            )
        if self.hires:
            raise InputError(
                "the second pass stretches the schedule, and timesteps are fixed: leave one of them out"
            )

    @property
    def timestep_list(self) -> tuple[int, ...]:
        """The numbers of ``timesteps``; empty for None."""
        return () if self.timesteps is None else read_timesteps(self.timesteps)

    def prompts(self) -> list[tuple[str, str | None]]:
        """Return prompt and negative prompt of each step; of a single one if they do not change."""
        if self.prompt_editing != "on":
            return [(self.prompt, self.negative_prompt)]
        negative = (None,) if self.negative_prompt is None else prompts_of(self.negative_prompt, self.steps)
        return list(zip(prompts_of(self.prompt, self.steps), cycle(negative), strict=False))

    @property
    def start(self) -> Start:
        """The part of the schedule that is run, in the first pass."""
        if self.init_image is None or self.strength is None:
            return Start(self.steps, self.steps, from_noise=True)
        return STRENGTH_STEPS[self.strength_steps](self.steps, self.strength)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The runs of the sampler, in order."""
        first = Pass(self, self.start)
        if not self.hires:
            return (first,)
        assert self.hires_strength is not None
        second = self._second_pass()
        return first, Pass(second, _comfyui_start(second.steps, self.hires_strength))

    def _second_pass(self) -> "GenerationSettings":
        """The settings of the second pass, whose micro-conditioning follows its size unless it was chosen."""
        width, height = self.final_size
        given: dict[str, Any] = {
            name: value for name in HIRES_CHANGES if (value := getattr(self, f"hires_{name}")) is not None
        }
        given |= {
            name: (height, width)
            for name in ("original_size", "target_size")
            if getattr(self, name) == (self.height, self.width)
        }
        off = dict.fromkeys(HIRES_SETTINGS)
        return replace(self, **{**off, "width": width, "height": height, **given})

    @property
    def total_steps(self) -> int:
        """The number of steps of all passes."""
        return sum(each.start.steps for each in self.passes) if self.hires else self.start.steps


HIRES_CHANGES = ("steps", "sampler", "schedule", "guidance_scale", "prompt", "negative_prompt")
"""Settings that the second pass may have of its own, in ``hires_`` and this name."""

HIRES_SIZES = ("hires_scale", "hires_width", "hires_height")
"""Settings that turn the hires fix on."""

HIRES_SETTINGS = (
    *HIRES_SIZES, "hires_strength", "hires_upscaler", *(f"hires_{each}" for each in HIRES_CHANGES)
)  # fmt: skip
"""All settings of the second pass."""

_PICTURE = (("init_image",), "init_image (--from), the picture to start from")
_HIRES = (HIRES_SIZES, "hires_scale (--hires-scale) or --hires-size, which make a second pass")
_NEEDS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType({
    **dict.fromkeys(("mask", "strength", "outpaint"), _PICTURE),
    "mask_blur": (("mask", "outpaint"), "mask (--mask) or outpaint (--outpaint)"),
    **{name: _HIRES for name in HIRES_SETTINGS if name not in HIRES_SIZES},
    "seed_resize_width": (("seed_resize_height",), "seed_resize_height, the other side"),
    "seed_resize_height": (("seed_resize_width",), "seed_resize_width, the other side"),
})  # fmt: skip
"""Settings that have no effect alone: what they need, of which one is enough, and how to say so."""


def _floor(side: float) -> int:
    """Round a side down to whole latent cells, as AUTOMATIC1111 does."""
    return int(side) // SIDE_MULTIPLE * SIDE_MULTIPLE


def check_needs(settings: Mapping[str, object], absent: Collection[str] = ()) -> None:
    """Check that settings which have an effect only together are given together.

    Args:
        settings: by name; None is the same as missing.
        absent: settings that will be added later, such as those of a sweep's axes.

    Raises:
        InputError: a setting needs another one, or excludes it.
    """
    given = {name for name, value in settings.items() if value is not None}
    for name, (needed, why) in _NEEDS.items():
        if name in given and given.isdisjoint(needed) and not {*absent} & {*needed}:
            raise InputError(f"{name} needs {why}")
    if "hires_scale" in given and given & {"hires_width", "hires_height"}:
        raise InputError("give hires_scale or hires_width and hires_height (--hires-size), not both")
    if "init_image" in given and given & {*HIRES_SIZES}:
        raise InputError(
            "the hires fix starts from text: omit init_image (--from), or enlarge the picture with --size"
        )


def _check_area(width: int, height: int, name: str = "size") -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is {width}x{height}: at most {MAX_PIXELS} pixels are allowed, as in 2048x2048"
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

PICTURE_SETTINGS = (
    *INPUTS, "strength", "strength_steps", "resize_mode", "mask_change", "mask_blur", "mask_content",
    "mask_area", "mask_padding", "outpaint", "outpaint_fill",
)  # fmt: skip
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
    """Merge all layers: overrides over preset over few-step LoRA over model over family.

    Sampler and schedule accept any name that ``sampler_names`` knows ("DPM++ 2M Karras"). If neither preset
    nor overrides set a size, it is that of ``init_image``, in multiples of 8, with the sides of ``outpaint``;
    a picture beyond the limits of an image is scaled down to the area of the model's size. If only the
    mask's area is drawn, it is the model's size. Unset micro-conditioning defaults to an uncropped
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
    chosen = over(_canonical(preset.settings if preset else {}), _canonical(overrides))
    settings = over(settings, _canonical(model_defaults))
    for found in few_step_loras(chosen.get("loras", ())):
        with prefix_errors(f"lora {shown(found.file)}"):
            check_overrides(found.settings)  # here, so that the error names the file
        settings = over(settings, _canonical(found.settings))
    picture, whole = chosen.get("init_image"), chosen.get("mask_area") != "masked"
    if isinstance(picture, InputFile) and whole and not {"width", "height"} & chosen.keys():
        settings |= _size_of(picture, settings["width"] * settings["height"], chosen.get("outpaint"))
    settings = with_drawn_seed(over(settings, chosen))
    size = (settings["height"], settings["width"])
    uncropped: dict[str, Any] = {"original_size": size, "crop_top_left": (0, 0), "target_size": size}
    return GenerationSettings(prompt=prompt, **(uncropped | settings))


def few_step_loras(loras: Iterable[object]) -> Iterator[Recognised]:
    """Recognise the adapters that make a model a few-step one; those that leave the UNet alone do not.

    Args:
        loras: whose files are looked into, where they are.
    """
    for each in loras:
        if isinstance(each, Lora) and each.unet and (found := recognise_file(each.file.path)):
            yield found


def over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one layer of settings over another; a layer that sets some of the steps replaces all of them."""
    merged = {**lower, **upper}
    if upper.get("timesteps") is not None:
        merged |= {"schedule": upper.get("schedule")}
        merged |= {"steps": upper.get("steps", len(read_timesteps(upper["timesteps"])))}
    elif {"steps", "schedule"} & upper.keys() and lower.get("timesteps") is not None:
        merged["timesteps"] = None
    return merged


def check_overrides(overrides: Mapping[str, object]) -> dict[str, Any]:
    """Validate some of the settings without prompt and model.

    Returns:
        The settings with canonical names and a concrete seed.

    Raises:
        InputError: a setting is unknown or its value is not allowed.
    """
    settings = validate(GenerationSettings, with_drawn_seed(_canonical(overrides)), partial=True)
    for prefix in ("", "hires_"):
        _check_area(
            settings.get(f"{prefix}width") or 0, settings.get(f"{prefix}height") or 0, f"{prefix}size"
        )
    return settings


def _size_of(picture: InputFile, area: int, outpaint: object) -> dict[str, int]:
    width, height = fitting_size(
        picture, area, multiple=SIDE_MULTIPLE, low=SMALLEST_SIDE, high=LARGEST_SIDE, most=MAX_PIXELS
    )
    if not isinstance(outpaint, str):
        return {"width": width, "height": height}
    left, top, right, bottom = read_sides(outpaint)
    width, height = width + left + right, height + top + bottom
    if max(width, height) > LARGEST_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"outpaint makes {width}x{height} of this picture: at most {MAX_PIXELS} pixels are allowed, and "
            f"{LARGEST_SIDE} for a side; a smaller size (--size) scales the picture"
        )
    return {"width": width, "height": height}


def read_size(text: str, option: str = "size") -> dict[str, int]:
    """Parse "1024x768" (width first), or one number for a square.

    Args:
        text: the size.
        option: the name in ``OPTIONS`` of the two settings to set.

    Raises:
        InputError: the text is neither.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{option} is {shown(text)}: it must be like 1024x768, or one number for a square")
    width, height = OPTIONS[option]
    return {width.name: int(match[1]), height.name: int(match[2] or match[1])}


def random_seed() -> int:
    """Choose a random seed."""
    return secrets.randbelow(SEEDS)


def with_drawn_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace ``RANDOM_SEED`` by a random seed, also of a variation."""
    drawn = dict(settings)
    for name in SEED_SETTINGS:
        if isinstance(seed := drawn.get(name), Integral) and seed == RANDOM_SEED:
            drawn[name] = random_seed()
    return drawn


def numbered(settings: GenerationSettings, number: int) -> GenerationSettings:
    """Make the settings of one of several images: add a number to its seed, or to that of its variation.

    As in AUTOMATIC1111, images with ``variation_strength`` are variations of the same noise.
    """
    name = "variation_seed" if settings.variation_strength else "seed"
    return replace(settings, **{name: (getattr(settings, name) + number) % SEEDS})


def equal_seed(seed: Any) -> Any:
    """Reduce a 64-bit seed, as other programs and earlier versions wrote it, to the seed with the same noise.

    Everything else is returned unchanged, and ``GenerationSettings`` refuses it.
    """
    return int(seed) % SEEDS if isinstance(seed, Integral) and SEEDS <= int(seed) < 2**64 else seed


def identified(settings: Mapping[str, object]) -> dict[str, object]:
    """Replace the paths of files, and the tables of ``with_tables``, by ``InputFile``s.

    Raises:
        InputError: a file does not exist, has another format, or is too large.
    """
    return {name: _identified(name, each) if name in SETTINGS else each for name, each in settings.items()}


def _identified(name: str, value: object) -> object:
    identify = SETTINGS[name].identify
    if identify is None or value is None or isinstance(value, InputFile):
        return value
    if isinstance(value, str | Path):
        return identify(str(value))
    if isinstance(value, Mapping):
        return InputFile(**value)
    raise InputError(f"{name} is {shown(value)}: it must be the path of a file")


def _name_sampler(settings: dict[str, Any], sampler: str, schedule: str) -> None:
    """Give a sampler its canonical name, and the schedule that its name may contain."""
    if isinstance(name := settings.get(sampler), str):
        settings[sampler], contained = resolve(name)
        if contained:
            settings.setdefault(schedule, contained)
    if isinstance(name := settings.get(schedule), str):
        settings[schedule] = resolve_schedule(name)


def _canonical(layer: Mapping[str, object]) -> dict[str, object]:
    """Check the names in one layer; give sampler and schedule canonical names, and identify files."""
    for name in layer:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
    settings = identified(layer)
    for name in LISTS:
        read = SETTINGS[name].read
        if isinstance(items := settings.get(name), list | tuple) and read is not None:
            settings[name] = tuple(
                read(str(each)) if isinstance(each, str | Path) else each for each in items
            )
    for prefix in ("", "hires_"):
        _name_sampler(settings, f"{prefix}sampler", f"{prefix}schedule")
    if isinstance(timesteps := settings.get("timesteps"), str):
        settings["timesteps"] = ",".join(map(str, read_timesteps(timesteps)))
    return settings
