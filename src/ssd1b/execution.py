"""Execution options: how networks run, beyond device and number format; no torch."""

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
    """Options for speed and memory. The defaults give the reference image.

    Attributes:
        backend: what runs UNet and VAE: ``torch``, or ``openvino`` on a CPU.
        compiled: compile UNet and VAE with torch's compiler when they first run.
        quantized: compute the UNet's products in ``int8`` or ``fp8``, or only store its weights in int8
            (``int8-weights``). ``auto`` is int8 if that is faster for the model on this CPU, resolved when
            the model is loaded. None does not quantize.
        memory: ``low`` stores the weights of text encoders and UNet in int8, keeps one network in memory at a
            time, and decodes in small tiles.

    Raises:
        InputError: a value is not allowed, or two options exclude each other.
    """

    backend: Annotated[str, OneOf("backend", BACKENDS)] = "torch"
    compiled: Flag = False
    quantized: Annotated[str, OneOf("quantization", QUANTIZATIONS)] | None = None
    memory: Annotated[str, OneOf("memory", MEMORIES)] = "normal"

    def __post_init__(self) -> None:
        """Check for options that exclude each other."""
        if self.backend == "openvino" and (self.compiled or self.memory == "low"):
            raise InputError("backend openvino excludes compile and low memory: omit them")
        if self.backend == "openvino" and self.quantized not in (None, "int8"):
            raise InputError(f"backend openvino quantizes to int8, not {self.quantized}")
        if self.memory == "low" and (self.compiled or self.quantized not in (None, "int8-weights")):
            raise InputError(
                "low memory excludes compile, and quantizations other than int8-weights: omit them"
            )

    def __str__(self) -> str:
        """List the options that are not the default: "compiled, int8"."""
        options = [self.backend if self.backend != "torch" else "", "compiled" if self.compiled else ""]
        options += [self.quantized or "", "low memory" if self.memory == "low" else ""]
        return ", ".join(filter(None, options)) or "default"


DEFAULT = Execution()
