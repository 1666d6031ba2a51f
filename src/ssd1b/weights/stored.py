"""Location of a network's tensors in files, in any known spelling, with their scales."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch

from ssd1b.errors import InputError, shown
from ssd1b.weights.files import FLOATS, Header, Shape, first_few
from ssd1b.weights.keymap import PLAIN, TensorTransform, from_original, our_name
from ssd1b.weights.spellings import Section, unused

_SCALES = ("scale_weight", "weight_scale")
"""Last words of the scale of an 8-bit weight: ComfyUI's scaled fp8, old and new name."""

_NUMBERS = ", ".join(FLOATS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """A product of two matrices in a file that is added to a tensor.

    Attributes:
        file: the safetensors file.
        up: name of the tensor ``[out, rank, ...]``.
        down: name of the tensor ``[rank, in, ...]``.
        shape: of the product, ``[out, in, ...]``.
    """

    file: Path
    up: str
    down: str
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Location of one of our tensors.

    Attributes:
        file: the safetensors file.
        name: the tensor's name in the file.
        dtype: the number format in the file.
        shape: our shape, after the transform.
        transform: converts the stored tensor to ours.
        scale: name of the tensor that the stored one is multiplied by first, if any.
        added: what is added to our tensor, if anything.
    """

    file: Path
    name: str
    dtype: torch.dtype
    shape: Shape
    transform: TensorTransform = PLAIN
    scale: str | None = None
    added: LowRank | None = None

    def plus(self, added: LowRank | None) -> "StoredTensor":
        """Return the sum of this tensor and a product of its shape."""
        return self if added is None else replace(self, added=added)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in the file that are read."""
        return (self.name,) if self.scale is None else (self.name, self.scale)

    @property
    def read_dtype(self) -> torch.dtype:
        """Number format of our tensor; float32 if it is computed."""
        return torch.float32 if self.computed else self.dtype

    @property
    def computed(self) -> bool:
        """Whether it is more than a view of the stored tensor."""
        return self.scale is not None or self.added is not None


def locate_tensors(
    part: str, file: Path, sections: Iterable[Section], header: Header
) -> dict[str, StoredTensor]:
    """Find the tensors of a network in one file, by our names.

    Unknown tensors keep their names in the file, and are reported when the network is loaded. Earlier
    sections take precedence.

    Raises:
        InputError: a tensor occurs twice in one section, or is not floating-point.
    """
    table: dict[str, StoredTensor] = {}
    for section in sections:
        found: dict[str, StoredTensor] = {}
        scales = {name for name in section.stored if name.rpartition(".")[2] in _SCALES}
        names = [name for name in section.stored if name not in scales and not unused(part, name)]
        original = from_original(part, names)
        for name in names:
            stored = section.stored[name]
            scale = _scale_of(name, scales)
            for ours, transform in original.get(name, [(our_name(part, name), PLAIN)]):
                add_tensor(
                    found, ours, file=file, stored=stored, header=header, transform=transform,
                    scale=None if scale is None else section.stored[scale],
                )  # fmt: skip
            scales.discard(scale or "")
        for name in scales:  # without a weight: unknown
            add_tensor(found, name, file=file, stored=section.stored[name], header=header)
        table = found | table
    return table


def _scale_of(name: str, scales: Iterable[str]) -> str | None:
    head, _, leaf = name.rpartition(".")
    return next((f"{head}.{s}" for s in _SCALES if leaf == "weight" and f"{head}.{s}" in scales), None)


def add_tensor(
    table: dict[str, StoredTensor],
    name: str,
    *,
    file: Path,
    stored: str,
    header: Header,
    transform: TensorTransform = PLAIN,
    scale: str | None = None,
) -> None:
    """Add one of our tensors to the table of its network.

    Raises:
        InputError: the table has it already, or it is not floating-point.
    """
    number_format, shape = header.tensors[stored]
    if name in table:
        raise InputError(
            f"{file}: duplicate tensor {first_few([name])}: {first_few([table[name].name, stored])}"
        )
    if number_format not in FLOATS:
        raise InputError(f"{file}: {_quantized(stored, number_format, header)}")
    if scale is not None:
        _check_scale(f"{file}: scaled fp8: {shown(scale)}", *header.tensors[scale], shape)
    table[name] = StoredTensor(
        file=file,
        name=stored,
        dtype=FLOATS[number_format],
        shape=transform.shape(shape),
        transform=transform,
        scale=scale,
    )


def _check_scale(where: str, number_format: str, scale: Shape, weight: Shape) -> None:
    if number_format not in FLOATS or (prod(scale) != 1 and prod(scale) != next(iter(weight), 1)):
        raise InputError(
            f"{where} is {number_format} {list(scale)} for a weight {list(weight)}; "
            "only one scale per tensor, or one per row, is supported"
        )


_QUANTIZED: Mapping[str, str] = {
    ".absmax": "4 bits of bitsandbytes (NF4 or FP4)",
    ".quant_map": "4 bits of bitsandbytes (NF4 or FP4)",
    "bitsandbytes__nf4": "NF4 of bitsandbytes",
    "bitsandbytes__fp4": "FP4 of bitsandbytes",
    ".SCB": "int8 of bitsandbytes",
    ".weight_format": "int8 of bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".comfy_quant": "ComfyUI",
    ".weight_scale": "ComfyUI",
    ".scale_weight": "ComfyUI",
    ".svdq": "SVDQuant",
}
"""Quantization schemes by the end of a name among the tensors."""


def _quantized(name: str, number_format: str, header: Header) -> str:
    by = next(
        (who for end, who in _QUANTIZED.items() if any(other.endswith(end) for other in header.tensors)), None
    )
    what = f"quantized weights ({by})" if by else "other number formats, such as quantized weights,"
    return f"{what} are not supported: {shown(name)} is {number_format}, not one of {_NUMBERS}"
