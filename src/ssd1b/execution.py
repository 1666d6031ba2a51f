"""How networks are executed, beyond device and number format: options for speed and memory; no torch."""

from dataclasses import dataclass
from typing import Annotated

from ssd1b.errors import InputError
from ssd1b.validation import Flag, OneOf, validated

BACKENDS = ("torch", "openvino")
QUANTIZATIONS = ("int8", "fp8", "int8-weights", "auto")
MEMORIES = ("normal", "low")


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Execution options. The default of each gives the reference picture.

    Attributes:
        backend: what runs UNet and VAE: torch, or OpenVINO on a CPU.
        compiled: compile them with torch's compiler when they first run.
        quantized: multiply the UNet's matrices in ``int8`` or ``fp8``, or only store them in eight bits
            (``int8-weights``). ``auto`` is int8 if that is faster for the model on this CPU, resolved when
            it is loaded. None does not quantize.
        memory: ``low`` keeps text encoders and UNet in eight bits, only one of them in memory, and decodes
            in small tiles.

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
        """List the options that are not the default: "compiled, int8"."""
        said = [self.backend if self.backend != "torch" else "", "compiled" if self.compiled else ""]
        said += [self.quantized or "", "low memory" if self.memory == "low" else ""]
        return ", ".join(filter(None, said)) or "as by default"


DEFAULT = Execution()
