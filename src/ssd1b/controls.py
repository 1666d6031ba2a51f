"""Controls in settings: a network that reads a picture, the picture, and how much it counts; no torch.

A control is a ControlNet (2302.05543) or a T2I-Adapter (2302.08453), written as ``MODEL:PICTURE`` with
numbers and words after it. Both files are identified by their content.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ssd1b.decoding import identify_picture
from ssd1b.errors import InputError, NotFoundError, shown, unknown
from ssd1b.files import expand_path, named, read_file
from ssd1b.inputs import InputFile, divide
from ssd1b.numerals import number
from ssd1b.table_files import parser_reason
from ssd1b.validation import Flag, OneOf, Range, Text, check, validated

MAX_BYTES = 8 * 2**30
"""Maximum size of a network's file. SDXL's largest ControlNet in float32 has 5 GB."""

MOST = 8
"""Maximum number of controls of one image."""

BUILT_IN = {"mini-control": Path(__file__).parent / "data" / "mini-control"}
"""Networks included in the package. ``mini-control`` reads edges, and fits the miniatures."""

PREPROCESSORS = {"none": "the picture as it is", "canny": "its edges, by Canny's detector"}
"""What a picture is turned into before the network reads it."""

ORDERS = {"rgb": "red first", "bgr": "blue first"}
"""Order of the channels in which a network takes pictures."""

STEMS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
"""Weight files in a folder, in the order of preference."""

_MAX_CONFIG_BYTES = 2**20
_CLASSES = ("ControlNetModel", "T2IAdapter")
_FORM = "MODEL:PICTURE, then SCALE:START:END, canny, guess or bgr, all optional"

Share = Annotated[float, Range(0, 1)]


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A network that guides an image by a picture.

    Attributes:
        model: the network's file.
        picture: what it reads; it is fitted to the image's size.
        scale: factor on what the network adds to the UNet's features; 0 turns it off.
        start: where it begins, as a share of the steps.
        end: where it ends, as a share of the steps.
        preprocess: a name of ``PREPROCESSORS``.
        guess: the network sees the prompt only, not the negative one, and deep features count more than
            shallow ones (ControlNet's "guess mode", for images without a prompt).
        order: a name of ``ORDERS``.
    """

    model: InputFile
    picture: InputFile
    scale: Annotated[float, Range(0, 10)] = 1.0
    start: Share = 0.0
    end: Share = 1.0
    preprocess: Annotated[str, OneOf("preprocessor", PREPROCESSORS)] = "none"
    guess: Flag = False
    order: Annotated[str, OneOf("order", ORDERS)] = "rgb"

    def __post_init__(self) -> None:
        """Check start and end together."""
        if self.start >= self.end:
            raise InputError(f"control: start {self.start:g} must be less than end {self.end:g}")

    def __str__(self) -> str:
        """Write it as an option's value, as ``read_control`` reads it."""
        name = next((name for name, folder in BUILT_IN.items() if self.model.path == str(folder / STEMS[0])),
                    self.model.path)  # fmt: skip
        numbers = [self.scale, self.start, self.end]
        while numbers[1:] and numbers[-1] == (1.0, 0.0, 1.0)[len(numbers) - 1]:
            numbers.pop()
        words = [
            *([] if self.preprocess == "none" else [self.preprocess]),
            *(["guess"] if self.guess else []),
            *(["bgr"] if self.order == "bgr" else []),
        ]
        return ":".join(
            [name, self.picture.path, *(repr(each).removesuffix(".0") for each in numbers), *words]
        )

    def active(self, step: int, steps: int) -> bool:
        """Whether it counts in a step; a step must lie within start and end as a whole, as in diffusers."""
        return self.scale != 0 and step / steps >= self.start and (step + 1) / steps <= self.end


def read_control(text: str) -> Control:
    """Read a control as written on the command line, such as ``mini-control:photo.png:0.8:0:0.5:canny``.

    Raises:
        NotFoundError: a file does not exist.
        InputError: a file cannot be read, or the text has another form.
    """
    paths, words = divide(text, (2,), BUILT_IN)
    if len(paths) != 2 or not all(paths):
        raise InputError(f"control is {shown(text)}: write {_FORM}")
    return control_of(*paths, **_options(words, text))


def control_of(model: str | Path, picture: str | Path, **options: Any) -> Control:
    """Identify the files of a control.

    Args:
        model: the network's file, a folder in diffusers' format, or a name of ``BUILT_IN``.
        picture: a PNG, JPEG or WebP.
        options: further fields of ``Control``.

    Raises:
        NotFoundError: a file does not exist.
        InputError: a file cannot be read, or a value is not allowed.
    """
    file, found = find_network(str(model))
    read = identify_picture(str(picture))
    return Control(model=InputFile.of(file, most=MAX_BYTES), picture=read, **{**found, **options})


def _options(words: Sequence[str], text: str) -> dict[str, Any]:
    """Read the numbers and words after the picture."""
    options: dict[str, Any] = {}
    numbers = iter(("scale", "start", "end"))
    for word in words:
        plain = word.strip().lower()
        if plain in PREPROCESSORS:
            options["preprocess"] = plain
        elif plain in ORDERS:
            options["order"] = plain
        elif plain == "guess":
            options["guess"] = True
        else:
            try:
                value = number(plain)
            except InputError:
                raise unknown(
                    f"word in control {shown(text)}:", word, [*PREPROCESSORS, "guess", *ORDERS]
                ) from None
            if (name := next(numbers, None)) is None:
                raise InputError(f"control is {shown(text)}: it has too many numbers: write {_FORM}")
            options[name] = value
    return options


def find_network(model: str) -> tuple[Path, dict[str, Any]]:
    """Find a network.

    Args:
        model: a name of ``BUILT_IN``, a folder in diffusers' format, or a file.

    Returns:
        The weight file, and fields of ``Control`` that the folder's configuration decides.

    Raises:
        NotFoundError: there is no such network, or no weight file in the folder.
        InputError: the configuration is damaged, or of another kind of network.
    """
    path = BUILT_IN.get(model) or Path(expand_path(model))
    if not path.is_dir():
        if not os.path.lexists(path) and path.name == model and not path.suffix:
            raise unknown("control model", model, BUILT_IN, NotFoundError)
        return path, {}
    file = next((path / name for name in STEMS if (path / name).is_file()), None)
    if file is None:
        raise NotFoundError(f"{named(path)}: no {STEMS[0]} in this folder")
    return file, _configured(path / "config.json")


def _configured(file: Path) -> dict[str, Any]:
    """Read what decides an image in a folder's configuration, but not in its weights."""
    if not file.is_file():
        return {}
    try:
        config = json.loads(read_file(file, most=_MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{named(file)} is not valid JSON: {parser_reason(error)}") from None
    if not isinstance(config, dict):
        raise InputError(f"{named(file)}: it must be an object")
    kind = check(f"{named(file)}: _class_name", config.get("_class_name", _CLASSES[0]), Text)
    if kind not in _CLASSES:
        raise InputError(f"{named(file)} is of a {shown(kind)}: only {' and '.join(_CLASSES)} are supported")
    if config.get("global_pool_conditions"):
        raise InputError(f"{named(file)}: global_pool_conditions is not supported")
    order = config.get("controlnet_conditioning_channel_order", "rgb")
    return {} if order == "rgb" else {"order": order}
