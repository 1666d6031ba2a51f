"""Image prompts in settings: an IP-Adapter, and the picture that it shows the model; no torch.

IP-Adapters (2308.06721) are written as ``FILE:PICTURE`` with an image encoder, numbers and words after it.
All files are identified by their content.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ssd1b.controls import MAX_BYTES, Share
from ssd1b.decoding import identify_picture
from ssd1b.errors import InputError, NotFoundError, shown, unknown
from ssd1b.files import expand_path, named
from ssd1b.inputs import InputFile, divide
from ssd1b.numerals import number
from ssd1b.validation import Check, Items, Range, Text, validated

MOST_IMAGE_PROMPTS = 8
"""Maximum number of image prompts of one image."""

LAYERS = {
    "style": "up_blocks.0.attentions.1",
    "layout": "down_blocks.2.attentions.1",
    "down": "down_blocks",
    "mid": "mid_block",
    "up": "up_blocks",
}
"""Names of parts of a UNet. The first two carry mostly style and mostly composition in SDXL (InstantStyle,
2404.02733)."""

ENCODER_FILES = ("model.safetensors", "model.fp16.safetensors")
"""Weight files in an image encoder's folder, in the order of preference."""

_PART = re.compile(r"(down_blocks|mid_block|up_blocks)(\.(\d{1,2}|attentions|transformer_blocks)){0,5}")
_FORM = "FILE:PICTURE, then ENCODER, SCALE:START:END, style or layout, all optional"


def _known_layers(layers: tuple[str, ...]) -> None:
    for each in layers:
        if each not in LAYERS and _PART.fullmatch(each) is None:
            raise unknown("part of the UNet", each, LAYERS)


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrompt:
    """A picture that an image is like, shown to the model by an IP-Adapter.

    Attributes:
        adapter: the IP-Adapter's file.
        picture: what it shows; its middle is cut out as a square.
        encoder: the image encoder's file.
        scale: factor on the attention to the picture, beside that to the text; 0 turns it off.
        start: where it begins, as a share of the steps.
        end: where it ends, as a share of the steps.
        layers: parts of the UNet in which it counts, names of ``LAYERS`` or of diffusers' modules, such as
            "up_blocks.0.attentions.1"; empty for all.
    """

    adapter: InputFile
    picture: InputFile
    encoder: InputFile
    scale: Annotated[float, Range(0, 10)] = 1.0
    start: Share = 0.0
    end: Share = 1.0
    layers: Annotated[tuple[Text, ...], Items(0, 32), Check(_known_layers)] = ()

    def __post_init__(self) -> None:
        """Check start and end together."""
        if self.start >= self.end:
            raise InputError(f"ip-adapter: start {self.start:g} must be less than end {self.end:g}")

    def __str__(self) -> str:
        """Write it as an option's value, as ``read_image_prompt`` reads it."""
        numbers = [self.scale, self.start, self.end]
        while numbers and numbers[-1] == (1.0, 0.0, 1.0)[len(numbers) - 1]:
            numbers.pop()
        written = (repr(each).removesuffix(".0") for each in numbers)
        return ":".join([self.adapter.path, self.picture.path, self.encoder.path, *written, *self.layers])

    def active(self, step: int, steps: int) -> bool:
        """Whether it counts in a step; a step must lie within start and end as a whole, as for controls."""
        return self.scale != 0 and step / steps >= self.start and (step + 1) / steps <= self.end

    def counts_in(self, block: str) -> bool:
        """Whether it counts in a transformer block, by diffusers' name for it."""
        parts = [LAYERS.get(each, each) for each in self.layers]
        return not parts or any(f"{block}.".startswith(f"{part}.") for part in parts)


def read_image_prompt(text: str) -> ImagePrompt:
    """Read an image prompt as written on the command line, such as ``ip-adapter.safetensors:photo.png:0.6``.

    Raises:
        NotFoundError: a file does not exist.
        InputError: a file cannot be read, or the text has another form.
    """
    paths, words = divide(text, (3, 2))
    if len(paths) < 2 or not all(paths):
        raise InputError(f"ip-adapter is {shown(text)}: write {_FORM}")
    return image_prompt_of(*paths, **_options(words, text))


def image_prompt_of(
    adapter: str | Path, picture: str | Path, encoder: str | Path | None = None, **options: Any
) -> ImagePrompt:
    """Identify the files of an image prompt.

    Args:
        adapter: the IP-Adapter, a safetensors file.
        picture: a PNG, JPEG or WebP.
        encoder: the image encoder, a safetensors file or a folder with one; None looks for it beside the
            adapter, see ``find_encoder``.
        options: further fields of ``ImagePrompt``.

    Raises:
        NotFoundError: a file does not exist.
        InputError: a file cannot be read, or a value is not allowed.
    """
    file = Path(expand_path(str(adapter)))
    found = InputFile.of(file, most=MAX_BYTES)
    read = identify_picture(str(picture))
    place = find_encoder(file) if encoder is None else _encoder_file(Path(expand_path(str(encoder))))
    return ImagePrompt(adapter=found, picture=read, encoder=InputFile.of(place, most=MAX_BYTES), **options)


def find_encoder(adapter: Path) -> Path:
    """Find the image encoder of an IP-Adapter in its folder, or in the other one of the published repository.

    There, ``sdxl_models/image_encoder`` is ViT-bigG's, and ``models/image_encoder`` is ViT-H's, which
    adapters with "vit-h" in their name take.

    Raises:
        NotFoundError: there is none.
    """
    places = ["image_encoder", "../models/image_encoder", "../image_encoder"]
    if "vit-h" in adapter.name.lower():
        places.insert(0, places.pop(1))
    for place in places:
        if file := _weights_in(adapter.parent / place):
            return file
    raise NotFoundError(
        f"{named(adapter)}: there is no image_encoder/{ENCODER_FILES[0]} beside it: name the image encoder "
        "after the picture, as FILE:PICTURE:ENCODER"
    )


def _encoder_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if file := _weights_in(path):
        return file
    raise NotFoundError(f"{named(path)}: no {ENCODER_FILES[0]} in this folder")


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in ENCODER_FILES if (folder / name).is_file()), None)


def _options(words: Sequence[str], text: str) -> dict[str, Any]:
    """Read the numbers and words after the paths."""
    options: dict[str, Any] = {}
    layers: list[str] = []
    numbers = iter(("scale", "start", "end"))
    for word in words:
        plain = word.strip().lower()
        if plain in LAYERS or _PART.fullmatch(plain):
            layers.append(plain)
            continue
        try:
            value = number(plain)
        except InputError:
            if os.path.basename(word) != word or "." in word:
                raise NotFoundError(f"ip-adapter {shown(text)}: {named(word)}: no such file") from None
            raise unknown(f"word in ip-adapter {shown(text)}:", word, LAYERS) from None
        if (name := next(numbers, None)) is None:
            raise InputError(f"ip-adapter is {shown(text)}: it has too many numbers: write {_FORM}")
        options[name] = value
    return options | ({"layers": tuple(layers)} if layers else {})
