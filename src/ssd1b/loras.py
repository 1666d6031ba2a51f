"""Adapters in settings: a file and its strengths, as written on the command line and in prompts; no torch.

The tags in prompts are AUTOMATIC1111's (``extensions-builtin/Lora``): ``<lora:name:1.2:0.8>``, where the
first number is the text encoders' strength and the second the UNet's, or ``te=`` and ``unet=`` by name.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from ssd1b.errors import InputError, shown, unknown
from ssd1b.files import disk_error, expand_path, header_length, named, open_regular
from ssd1b.inputs import SUFFIX, InputFile, files_by_name, only_file, without_suffix
from ssd1b.numerals import number
from ssd1b.validation import Range, Text, validated

MAX_BYTES = 16 * 2**30
"""Maximum size of a file. An SDXL LoRA of rank 256 in float32 has 2.7 GB, its full difference 10 GB."""

MOST = 32
"""Maximum number of adapters of one image."""

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names in PEFT's folders."""

MAX_CONFIG_BYTES = 2**20

TRANSFERS = ("kept", "projection", "name")
"""How an adapter is moved to another model: through the layer maps; also projected onto the subspaces of its
weights; or by names alone, as other programs do."""

Strength = Annotated[float, Range(-100, 100)]

_PIECE = re.compile(r"(.+):([^:/\\]*)", re.DOTALL)
_TOO_MANY = re.compile(rf"{re.escape(SUFFIX)}(:\s*[-+.\d]+\s*)+$", re.IGNORECASE)
_TAG = re.compile(r"<(?:lora|lyco):([^<>:\n]{1,200})((?::[^<>:\n]{0,40}){0,8})>")

_STRENGTHS = ("te", "unet")
"""Strengths in tags, in the order of their positions. AUTOMATIC1111's third one, "dyn", is the rank to use,
which is not supported."""

_TAG_FORM = "<lora:NAME:1:0.8>, with the text encoders' strength and the UNet's"


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA, or another adapter, of an image.

    Attributes:
        file: the file, identified by its content.
        unet: strength in the UNet; 0 leaves it unchanged, and negative numbers subtract.
        text: strength in the text encoders.
        short_hash: first 12 digits of the SHA-256 of the file's tensors, by which AUTOMATIC1111 and others
            find it; empty if unknown.
        config: PEFT's ``adapter_config.json`` beside the file, which has its strength; None for other files.
    """

    file: InputFile
    unet: Strength = 1.0
    text: Strength = 1.0
    short_hash: Text = field(default="", compare=False)
    config: InputFile | None = None

    @property
    def name(self) -> str:
        """The file's name without suffix, as in tags; of PEFT's, the folder's."""
        path = Path(self.file.path)
        return path.stem if self.config is None else path.parent.name or path.stem

    def __str__(self) -> str:
        """Write it as an option's value: ``FILE[:UNET[:TEXT]]``."""
        strengths = [self.unet] if self.unet == self.text else [self.unet, self.text]
        written = "" if strengths == [1.0] and not _PIECE.fullmatch(self.file.path) else "".join(
            f":{_plain(each)}" for each in strengths
        )  # fmt: skip
        return f"{self.file.path}{written}"


def read_lora(text: str) -> Lora:
    """Read an adapter as written on the command line: ``FILE``, ``FILE:UNET`` or ``FILE:UNET:TEXT``.

    The text encoders' strength is by default the UNet's. A path may contain colons: up to two numbers at the
    end are strengths, unless a file has the whole text as its name.

    Raises:
        NotFoundError: there is no such file.
        InputError: the file cannot be read, or a strength is not allowed.
    """
    path, strengths = text, list[float]()
    while len(strengths) < 2 and not os.path.lexists(os.path.expanduser(path)):
        found = _PIECE.fullmatch(path)
        if found is None:
            break
        try:
            strengths.insert(0, number(found[2].strip()))
        except InputError:
            if strengths or found[1].lower().endswith(SUFFIX):
                raise InputError(
                    f"lora {shown(text)}: {shown(found[2])} is no number: write FILE:0.8:0.5"
                ) from None
            break
        path = found[1]
    if not os.path.lexists(os.path.expanduser(path)) and _TOO_MANY.search(path):
        raise InputError(f"lora {shown(text)}: it has too many numbers: write FILE:0.8:0.5")
    unet, *rest = strengths or [1.0]
    return lora_of(path, unet=unet, text=rest[0] if rest else unet)


def lora_of(path: str | Path, *, unet: float = 1.0, text: float = 1.0) -> Lora:
    """Identify the file of an adapter, or PEFT's folder, and give its strengths.

    Raises:
        InputError: the file cannot be read, is not safetensors, or a strength is not allowed.
    """
    place = Path(expand_path(str(path)))
    place = place / PEFT_FILE if place.is_dir() else place
    file = InputFile.of(place, most=MAX_BYTES)
    return Lora(
        file=file, unet=unet, text=text, short_hash=_tensors_hash(file.path),
        config=InputFile.of(place.with_name(PEFT_CONFIG), most=MAX_CONFIG_BYTES) if is_peft(place) else None,
    )  # fmt: skip


def is_peft(path: Path) -> bool:
    """Whether a file is the weights of a folder of PEFT."""
    return path.name == PEFT_FILE and path.with_name(PEFT_CONFIG).exists()


def place_of(path: Path) -> Path:
    """Return what an adapter's file is named after: PEFT's folder, or the file without suffix."""
    return path.parent if is_peft(path) else without_suffix(path)


def _tensors_hash(path: str) -> str:
    """Hash what follows the header of a safetensors file; no more than its first byte is looked at.

    Raises:
        InputError: it is another file, which is found here before a model is loaded.
    """
    with open_regular(path) as file:
        try:
            file.seek(8 + header_length(file, path))
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
        except OSError as error:
            raise disk_error(f"cannot read {named(path)}", error) from None


def scaled(loras: Sequence[Lora], factor: float, name: str | None = None) -> tuple[Lora, ...]:
    """Multiply the strengths of all adapters, or of the one of a name.

    Raises:
        InputError: no adapter has the name, or a strength is out of range.
    """
    if name is not None and all(each.name != name for each in loras):
        raise unknown("lora", name, [each.name for each in loras])
    return tuple(
        replace(each, unet=each.unet * factor, text=each.text * factor) if name in (None, each.name) else each
        for each in loras
    )


def read_tags(
    prompt: str, folder: str | Path, identify: Callable[..., Lora] = lora_of
) -> tuple[str, tuple[Lora, ...]]:
    """Remove the tags of adapters from a prompt, and find their files in a folder and the folders in it.

    A name is a file's without suffix, or that of PEFT's folder, also with the folders that lead to it. Of
    several tags with one name the last counts, as in AUTOMATIC1111.

    Args:
        prompt: the prompt.
        folder: where the files are.
        identify: as ``lora_of``.

    Returns:
        The prompt without tags, and the adapters in the order of their first tags.

    Raises:
        NotFoundError: there is no file of a name; the message gives the nearest name.
        InputError: a strength is no number or unknown, or a name belongs to several files.
    """
    found: dict[str, Lora] = {}
    files: dict[str, list[Path]] = {}
    for tag in _TAG.finditer(prompt):
        files = files or files_by_name(Path(expand_path(str(folder))), "<lora:...>", place_of)
        name = tag[1].strip()
        strengths = _strengths(tag[2].split(":")[1:], tag[0])
        found[name] = identify(only_file("lora", name, files), **strengths)
    return (_TAG.sub("", prompt).strip(), tuple(found.values())) if found else (prompt, ())


def _strengths(values: Iterable[str], tag: str) -> dict[str, float]:
    """Read the strengths of a tag, by position or by name.

    Raises:
        InputError: a strength is no number, its name is unknown, or there are too many.
    """
    given: dict[str, float] = {}
    positions = iter(_STRENGTHS)
    for value in values:
        name, equals, rest = value.partition("=")
        key = name.strip() if equals else next(positions, None)
        if key is None:
            raise InputError(f"{shown(tag)} has too many numbers: write {_TAG_FORM}")
        if key not in _STRENGTHS:
            raise unknown(f"strength in {shown(tag)}:", key, _STRENGTHS)
        try:
            given[key] = number((rest if equals else value).strip())
        except InputError:
            raise InputError(f"{shown(tag)}: {shown(value)} is no number: write {_TAG_FORM}") from None
    text = given.get("te", 1.0)
    return {"unet": given.get("unet", text), "text": text}


def write_tags(loras: Iterable[Lora]) -> str:
    """Write adapters as tags, which AUTOMATIC1111 and others read."""
    return "".join(
        f"<lora:{each.name}:{_plain(each.text)}>"
        if each.unet == each.text
        else f"<lora:{each.name}:{_plain(each.text)}:{_plain(each.unet)}>"
        for each in loras
    )


def _plain(value: float) -> str:
    return repr(value).removesuffix(".0")
