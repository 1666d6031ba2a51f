"""safetensors files: looked at without loading, refused when something else, written whole or not at all.

The library parses; what this module adds is a sentence for people when it refuses.
"""

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssd1b.errors import InputError

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

_LARGEST_JSON = 32 * 2**20
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
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(
            f"{path}: {_describe(path, str(error))}; only whole safetensors files are read"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _describe(path: Path, reason: str) -> str:
    with path.open("rb") as file:
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
    tensors = {}
    for name in handle.offset_keys():
        view = handle.get_slice(name)
        tensors[name] = (view.get_dtype(), tuple(view.get_shape()))
    return Header(tensors, handle.metadata() or {})


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor is free of NaN and infinity; several times faster than ``isfinite().all()``."""
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # 8-bit floats have no arithmetic
    return tensor.numel() == 0 or all(math.isfinite(value.item()) for value in torch.aminmax(tensor))


def some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: no such file, or something else in it.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise InputError(f"{path}: larger than {_LARGEST_JSON >> 20} MiB, which no configuration is")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; ``where`` names it in the error."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object was expected, got {type(value).__name__}")
    return value


def json_value(value: Any) -> Any:
    """What JSON can say of a value: NaN and infinity, for which it has no words, are null."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, two spaces deep, as the hub's libraries do; see ``json_value``."""
    text = json.dumps(json_value(value), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file and wait until it is on the disk.

    "format": "pt" is what transformers and diffusers demand.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()
    usual = path.stat().st_mode
    save_file(contiguous, path, metadata={"format": "pt", **metadata})
    path.chmod(usual)  # safetensors makes files that nobody else can read
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def replacing(target: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Give a temporary path, and move what was written there into place at the end.

    If anything goes wrong, a full disk or Ctrl-C, the temporary is removed and ``target`` is what it was.

    Args:
        target: the file or folder to be written.
        temporary: on the same disk, and this process's alone; if None, one beside ``target``. SIGKILL
            leaves it behind: whoever gives a name can find it and remove it.

    Raises:
        InputError: the disk refused.
    """
    temporary = temporary or target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _move(temporary, target)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {target}: {_reason(error)}; nothing was changed") from error
    finally:
        _remove(temporary)


def _move(source: Path, target: Path) -> None:
    if not target.is_dir():
        source.replace(target)
        return
    # A directory cannot replace another in a single step: the old one steps aside, and comes back on failure.
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    target.rename(aside)
    try:
        source.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():  # unlink(missing_ok=True) still raises if a file stands where its folder should
        path.unlink()


def _reason(error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC or "No space left" in str(error):
        return "no space left on the disk"
    return getattr(error, "strerror", None) or str(error)
