"""How a model computes, beyond device and number format: what changes speed and memory, as data; no torch."""

from dataclasses import dataclass
from typing import Annotated

from ssd1b.errors import InputError
from ssd1b.validation import Flag, OneOf, validated

BACKENDS = ("torch", "openvino")
QUANTIZATIONS = ("int8", "fp8", "int8-weights", "auto")
MEMORIES = ("normal", "low")


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """The choices of whoever draws; the first of each changes nothing but the last bits of a picture.

    Attributes:
        backend: what runs UNet and VAE: torch, or OpenVINO on a CPU.
        compiled: by torch's compiler, when they first run.
        quantized: the UNet's matrices in eight bits: multiplied so (``int8``, ``fp8``), or only kept so
            (``int8-weights``); ``auto`` is int8 on CPUs that are faster so with this model, settled when
            it is loaded. None for not.
        memory: ``low`` keeps text encoders and UNet in eight bits and never both in memory, and decodes in
            small tiles.

    Raises:
        InputError: a value that is none of these, or two that exclude each other.
    """

    backend: Annotated[str, OneOf("backend", BACKENDS)] = "torch"
    compiled: Flag = False
    quantized: Annotated[str, OneOf("quantization", QUANTIZATIONS)] | None = None
    memory: Annotated[str, OneOf("memory", MEMORIES)] = "normal"

    def __post_init__(self) -> None:
        """Check what excludes each other."""
        if self.backend == "openvino" and (self.compiled or self.memory == "low"):
            raise InputError("backend openvino compiles by itself and takes memory: leave those choices out")
        if self.backend == "openvino" and self.quantized not in (None, "int8"):
            raise InputError(f"backend openvino quantizes to int8, not {self.quantized}")
        if self.memory == "low" and (self.compiled or self.quantized not in (None, "int8-weights")):
            raise InputError("memory low has its own eight bits and is not compiled: leave the others out")

    def __str__(self) -> str:
        """What is not as it is by default: "compiled, int8"."""
        said = [self.backend if self.backend != "torch" else "", "compiled" if self.compiled else ""]
        said += [self.quantized or "", "low memory" if self.memory == "low" else ""]
        return ", ".join(filter(None, said)) or "as by default"


DEFAULT = Computing()
