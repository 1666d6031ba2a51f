"""safetensors and JSON files: reading headers and tensors, readable errors, atomic writes."""

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
from ssd1b.files import disk_error, impostor, named, open_regular, read_file, reason
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
"""Supported number formats of weights by their names in the file."""

_LARGEST_HEADER = 16 * 2**20
"""Maximum size of a header in bytes, with metadata; SDXL's has 0.3 million, and trainers add little."""

_MOST_TENSORS = 32_768
_LONGEST_NAME = 1024

_LARGEST_JSON = 8 * 2**20
"""Maximum size in bytes; the largest published JSON file of a model is a tokenizer of 3.6 MB."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        tensors: (number format, shape) of each tensor, in file order.
        metadata: free-form texts by key.
    """

    tensors: dict[str, tuple[str, Shape]]
    metadata: dict[str, str]


def open_file(path: Path) -> Any:
    """Memory-map a safetensors file; the mapping lives as long as the handle or any tensor from it.

    Raises:
        InputError: the file does not exist, is not readable, or is not safetensors, whatever its name.
    """
    try:
        _check_header(path)
    except OSError as error:
        raise disk_error(f"cannot read {named(path)}", error) from error
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(
            f"{named(path)}: {_describe(path, error)}; only intact safetensors files are supported"
        ) from error
    except (OSError, RuntimeError, MemoryError) as error:  # torch cannot map it
        raise InputError(f"cannot read {named(path)}: {reason(error)}") from error


def _check_header(path: Path) -> None:
    """Check the size of a header before the library parses it.

    Raises:
        InputError: it is larger than that of any model, or the file is not a regular one.
    """
    with open_regular(path) as file:
        start = file.read(8)
        length, rest = int.from_bytes(start, "little"), os.fstat(file.fileno()).st_size - 8
        if length > rest:
            return  # another kind of file, or a damaged one: reported by the library and ``_describe``
        if length > _LARGEST_HEADER:
            raise InputError(
                f"{named(path)}: its header has {length} bytes; at most {_LARGEST_HEADER} are allowed, "
                "and models have less than a million"
            )
        _check_count(file.read(length).count(b'"data_offsets"'), path)


def _check_count(tensors: int, path: Path) -> None:
    if tensors > _MOST_TENSORS:
        raise InputError(
            f"{named(path)}: it has {tensors} tensors; at most {_MOST_TENSORS} are allowed, SDXL has 2513"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map all tensors of a safetensors file that this program wrote; raises as ``open_file``."""
    handle = open_file(path)
    return {name: handle.get_tensor(name) for name in handle.keys()}


def _describe(path: Path, error: SafetensorError) -> str:
    with open_regular(path) as file:
        start = file.read(64).lstrip()
    if not start:
        return "an empty file"
    details = reason(error).removeprefix("Error while deserializing ")
    return impostor(start) or f"a damaged safetensors file or another format ({details})"


def read_header(path: Path) -> Header:
    """Read names, number formats and shapes, but no tensors; raises as ``open_file``."""
    handle = open_file(path)
    names = handle.offset_keys()
    _check_count(len(names), path)  # again, because escapes in a header can hide names from the first count
    tensors = {}
    for name in names:
        if len(name) > _LONGEST_NAME:
            raise InputError(f"{named(path)}: a tensor name has {len(name)} characters: {shown(name)}")
        view = handle.get_slice(name)
        tensors[name] = (view.get_dtype(), tuple(view.get_shape()))
    return Header(tensors, handle.metadata() or {})


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN or infinity; several times faster than ``isfinite().all()``."""
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # 8-bit floats have no arithmetic
    return tensor.numel() == 0 or all(math.isfinite(value.item()) for value in torch.aminmax(tensor))


def first_few(names: Iterable[str]) -> str:
    """Format the first three names, shortened or escaped if necessary, and the number of others."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(map(named, listed[:3])) + more


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object.

    Raises:
        InputError: the file does not exist or has something else in it.
    """
    return parse_json(read_file(path, most=_LARGEST_JSON), named(path))


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; ``where`` names it in errors."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({shown(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def json_value(value: Any) -> Any:
    """Convert a value to JSON types; NaN and infinity become null."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, see ``json_text``."""
    path.write_text(json_text(value), encoding="utf-8")


def json_text(value: Mapping[str, Any]) -> str:
    """Format a JSON object like the hub's libraries, with an indent of 2; see ``json_value``."""
    return json.dumps(json_value(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, with the metadata "format": "pt" that transformers and diffusers require.

    The same tensors and metadata, in any order, are the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    # safetensors writes a temporary file with a name of its choice next to this one. In a separate folder it
    # can be found if the program is killed.
    folder = temporary_path(path.parent)
    folder.mkdir()
    try:
        save_file(contiguous, folder / path.name, metadata={"format": "pt", **metadata})
        _sort_metadata(folder / path.name)
        (folder / path.name).chmod(mode)  # safetensors creates files that other users cannot read
        os.replace(folder / path.name, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in the header of a new file, in place.

    safetensors writes them in a random order, and files are identified by their bytes. It sorts the tensors
    itself.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise OSError(f"the header of {len(text)} bytes does not fit into {length}")
        file.seek(8)
        file.write(text.ljust(length))
