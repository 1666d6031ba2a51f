"""safetensors files: looked at without loading, refused when something else, written whole or not at all.

The library parses; what this module adds is a sentence for people when it refuses.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssd1b.errors import InputError, shown
from ssd1b.files import disk_error, named, open_regular, read_file, reason
from ssd1b.saving import temporary_path

Shape = tuple[int, ...]

FLOATS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The number formats that weights are read from, by their names in the file."""

# First bytes of what people mistake for a safetensors file. A pickle is refused because opening it runs code.
_IMPOSTORS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as PyTorch writes pickles; a pickle can run code when opened"),
    (b"\x80", "a pickle, which can run code when opened"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer: the download is not complete, run 'git lfs pull'"),
    (b"<", "a web page: the download went wrong"),
    (b"{", "a JSON text"),
    (b"\x1f\x8b", "a gzip archive"),
)

_LARGEST_HEADER = 16 * 2**20
"""Bytes, metadata included; SDXL's has 0.3 million, and trainers add a few."""

_MOST_TENSORS = 32_768
_LONGEST_NAME = 1024

_LARGEST_JSON = 8 * 2**20
"""Bytes; the largest published JSON file of a model is a tokenizer of 3.6 MB."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        tensors: (number format, shape) of each tensor, in the order of their bytes.
        metadata: free texts.
    """

    tensors: dict[str, tuple[str, Shape]]
    metadata: dict[str, str]


def open_file(path: Path) -> Any:
    """Memory-map a safetensors file; the mapping lives as long as the handle or a tensor of it.

    Raises:
        InputError: no such file, not readable, or not a safetensors file, whatever its name says.
    """
    _check_header(path)
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(
            f"{named(path)}: {_describe(path, str(error))}; only whole safetensors files are read"
        ) from error
    except (OSError, RuntimeError, MemoryError) as error:  # torch cannot map it, or there is no memory to
        raise InputError(f"cannot read {named(path)}: {shown(reason(error))}") from error


def _check_header(path: Path) -> None:
    """See that a header is not larger than that of any model, before the library parses it.

    Raises:
        InputError: it is, or as ``open_regular``.
    """
    try:
        _check_size(path)
    except OSError as error:
        raise disk_error(f"cannot read {named(path)}", error) from error


def _check_size(path: Path) -> None:
    with open_regular(path) as file:
        start = file.read(8)
        length, rest = int.from_bytes(start, "little"), os.fstat(file.fileno()).st_size - 8
        if length > rest:
            return  # another kind of file, or a damaged one: the library and ``_describe`` say so
        if length > _LARGEST_HEADER:
            raise InputError(
                f"{named(path)}: its header has {length} bytes; allowed are {_LARGEST_HEADER}, "
                "and models have less than a million"
            )
        _check_count(file.read(length).count(b'"data_offsets"'), path)


def _check_count(tensors: int, path: Path) -> None:
    if tensors > _MOST_TENSORS:
        raise InputError(
            f"{named(path)}: it holds {tensors} tensors; allowed are {_MOST_TENSORS}, SDXL has 2513"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file that this program wrote, mapped from it; raises as ``open_file``."""
    handle = open_file(path)
    return {name: handle.get_tensor(name) for name in handle.keys()}


def _describe(path: Path, reason: str) -> str:
    with open_regular(path) as file:
        start = file.read(64).lstrip()
    if not start:
        return "an empty file"
    impostor = next((what for magic, what in _IMPOSTORS if start.startswith(magic)), None)
    return impostor or f"damaged or no safetensors file ({reason.removeprefix('Error while deserializing ')})"


def read_header(path: Path) -> Header:
    """Read names, number formats and shapes; no tensor is touched.

    Raises:
        InputError: as ``open_file``.
    """
    handle = open_file(path)
    names = handle.offset_keys()
    _check_count(len(names), path)  # again, because a header can spell its words so that they are not counted
    tensors = {}
    for name in names:
        if len(name) > _LONGEST_NAME:
            raise InputError(f"{named(path)}: a tensor's name has {len(name)} characters: {shown(name)}")
        view = handle.get_slice(name)
        tensors[name] = (view.get_dtype(), tuple(view.get_shape()))
    return Header(tensors, handle.metadata() or {})


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor is free of NaN and infinity; several times faster than ``isfinite().all()``."""
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # 8-bit floats have no arithmetic
    return tensor.numel() == 0 or all(math.isfinite(value.item()) for value in torch.aminmax(tensor))


def first_few(names: Iterable[str]) -> str:
    """The first three names, long or unprintable ones shortened and escaped, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(map(named, listed[:3])) + more


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: no such file, or something else in it.
    """
    return parse_json(read_file(path, most=_LARGEST_JSON), named(path))


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; ``where`` names it in the error."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({shown(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object was expected, got {type(value).__name__}")
    return value


def json_value(value: Any) -> Any:
    """What JSON can say of a value: NaN and infinity, for which it has no words, are null."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, see ``json_text``."""
    path.write_text(json_text(value), encoding="utf-8")


def json_text(value: Mapping[str, Any]) -> str:
    """A JSON object, two spaces deep, as the hub's libraries write it; see ``json_value``."""
    return json.dumps(json_value(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    "format": "pt" is what transformers and diffusers demand.

    Raises:
        OSError: the disk refused.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()
    usual = path.stat().st_mode
    # safetensors writes a file of a name of its own beside this one. If the program is killed, that file is
    # found with its folder.
    folder = temporary_path(path.parent)
    folder.mkdir()
    try:
        save_file(contiguous, folder / path.name, metadata={"format": "pt", **metadata})
        (folder / path.name).chmod(usual)  # safetensors makes files that nobody else can read
        os.replace(folder / path.name, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
