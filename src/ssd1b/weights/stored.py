"""The tensors of one network in the files they lie in, by any known spelling, and their scales."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from ssd1b.errors import InputError, shown
from ssd1b.weights.files import FLOATS, Header, Shape, first_few
from ssd1b.weights.keymap import PLAIN, TensorTransform, from_original, our_name
from ssd1b.weights.spellings import Section, unused

_SCALES = ("scale_weight", "weight_scale")
"""Last words of the factor of an 8-bit weight: ComfyUI's scaled fp8, its older and its newer name."""

_NUMBERS = ", ".join(FLOATS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where the bytes of one of our tensors lie.

    Attributes:
        file: the safetensors file.
        name: the tensor's name in it.
        dtype: the number format in it.
        shape: our shape, which the transform gives.
        transform: how to get our tensor out of the stored one.
        scale: name of the factor that the stored one is multiplied with first, if any.
    """

    file: Path
    name: str
    dtype: torch.dtype
    shape: Shape
    transform: TensorTransform = PLAIN
    scale: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the file that make it up."""
        return (self.name,) if self.scale is None else (self.name, self.scale)

    @property
    def read_dtype(self) -> torch.dtype:
        """The number format of our tensor, float32 where it has a scale."""
        return self.dtype if self.scale is None else torch.float32


def locate_tensors(
    part: str, file: Path, sections: Iterable[Section], header: Header
) -> dict[str, StoredTensor]:
    """Find the tensors of a network in one file, by our names.

    Unknown ones keep the names they have in the file, and are named when the network is loaded. What an
    earlier section has is not taken from a later one.

    Raises:
        InputError: a tensor is there twice in one section, or its numbers are no floats.
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
        for name in scales:  # of no weight: unknown
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
    """Enter one of our tensors into the table of its network.

    Raises:
        InputError: it is there already, or its numbers are no floats.
    """
    number_format, shape = header.tensors[stored]
    if name in table:
        raise InputError(
            f"{file}: {first_few([name])} is there twice: {first_few([table[name].name, stored])}"
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
            "only one factor for a tensor, or one for each of its rows, is read"
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
"""By whom weights were quantized, by the end of a name beside them."""


def _quantized(name: str, number_format: str, header: Header) -> str:
    by = next(
        (who for end, who in _QUANTIZED.items() if any(other.endswith(end) for other in header.tensors)), None
    )
    known = f"quantized weights ({by})" if by else "no floats, as quantized weights"
    return f"{known} are not read: {shown(name)} holds {number_format}; read are {_NUMBERS}"
