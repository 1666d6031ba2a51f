"""What runs a model's networks: torch here, OpenVINO in its own file, both behind one protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from ssd1b.errors import InputError
from ssd1b.execution import Execution
from ssd1b.layouts import UNetLayout
from ssd1b.model import NETWORKS, Model
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.speed.blocks import use_blocks
from ssd1b.speed.compiling import compile_network
from ssd1b.speed.fusing import fuse
from ssd1b.speed.int8_cpu import int8_is_fast, quantize_products
from ssd1b.speed.offloading import LazyNetwork, ModelSlot
from ssd1b.speed.openvino import OpenVINOBackend, check_openvino
from ssd1b.speed.packing import FORMATS, pack
from ssd1b.speed.torchao_quant import check_quantization, quantize
from ssd1b.speed.weight_only import quantize_weights

WIDE = 256
"""Channels of the widest level from which a UNet is faster in eight bits: SSD-1B's 1280 take half the time,
the miniatures' 96 take 0.9 of it in batches of 8 and 1.4 alone (docs/log)."""


@runtime_checkable
class Backend(Protocol):
    """Reads a model's networks and prepares them for inference."""

    def load(self, model: Model, part: str) -> Any:
        """Give one of ``keymap.PARTS``, ready to run; an uncalibrated UNet comes without quantization.

        Raises:
            InputError: its files are damaged.
        """
        ...

    def uncalibrated(self, model: Model) -> bool:
        """Whether the UNet's quantization still needs ``calibrate``."""
        ...

    def calibrate(self, model: Model, unet: Any, samples: Sequence[tuple[Any, ...]]) -> Any:
        """Quantize the UNet by the ranges of samples, and keep the result on disk.

        Args:
            model: where its weights are.
            unet: as ``load`` gave it.
            samples: arguments with which it was called.

        Returns:
            The quantized UNet, as ``load`` gives it from then on.
        """
        ...


def choose_backend(
    execution: Execution, device: torch.device, dtype: torch.dtype, notify: Callable[[str], None]
) -> Backend:
    """Make the backend that ``execution`` names; ``check_execution`` and ``resolve_auto`` come before.

    Args:
        execution: how to compute.
        device: where.
        dtype: number format to compute in.
        notify: called before steps that take minutes the first time.
    """
    torch_backend = TorchBackend(device=device, dtype=dtype, execution=execution)
    if execution.backend == "torch":
        return torch_backend
    quantized = execution.quantized is not None
    return OpenVINOBackend(dtype=dtype, quantized=quantized, notify=notify, load_other=torch_backend.load)


def check_execution(execution: Execution, device: torch.device, dtype: torch.dtype) -> None:
    """Check that this machine supports the options.

    Raises:
        InputError: a library is missing, or the device does not do it, or not both at once.
    """
    if execution.backend == "openvino":
        check_openvino(device, quantized=execution.quantized is not None)
    elif execution.quantized in ("int8", "fp8"):
        check_quantization(execution.quantized, device, dtype)
        if execution.compiled and execution.quantized == "int8" and device.type == "cpu":
            raise InputError("on a CPU quantize int8 has kernels of its own: leave compile out")


def resolve_auto(
    execution: Execution, unet: UNetLayout, device: torch.device, dtype: torch.dtype
) -> Execution:
    """Replace "auto" by what is faster for one UNet on this machine."""
    if execution.quantized != "auto":
        return execution
    wide = max(level.channels for level in unet.levels) >= WIDE
    able = device.type == "cpu" and dtype in FORMATS and not execution.compiled
    return replace(execution, quantized="int8" if wide and able and int8_is_fast() else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBackend:
    """Runs networks with torch, on any device.

    Attributes:
        device: where to run.
        dtype: number format to compute in.
        execution: compiled, quantized, in little memory.
    """

    device: torch.device
    dtype: torch.dtype
    execution: Execution
    _slot: ModelSlot = field(default_factory=ModelSlot)

    def load(self, model: Model, part: str) -> Any:
        """See ``Backend``. In little memory it gives a stand-in that reads the network when it is used."""
        if self.execution.memory == "low" and part != "vae":
            read = partial(self._in_eight_bits, model, part)
            layout = model.checkpoint.part(part).layout
            return LazyNetwork(cast(type, NETWORKS[part]), read, self._slot, layout=layout)
        network = model.network(part, device=self.device, dtype=self.dtype)
        prepare(network, compiled=self.execution.compiled, quantized=self.execution.quantized)
        return network

    def _in_eight_bits(self, model: Model, part: str) -> nn.Module:
        """Read a network in 16 bits and round its weights to eight, layer by layer."""
        network = model.network(part, dtype=model.checkpoint.part(part).half_dtype, copied=True)
        if part == "unet":
            prepare(network, quantized="int8-weights")
        else:
            quantize_weights(network)
        return network.to(self.device, self.dtype)

    def uncalibrated(self, model: Model) -> bool:
        """See ``Backend``: ranges are taken from each tensor as it comes."""
        return False

    def calibrate(self, model: Model, unet: Any, samples: Sequence[tuple[Any, ...]]) -> Any:
        """See ``Backend``: there is nothing to calibrate."""
        return unet


def prepare(network: nn.Module, *, compiled: bool = False, quantized: str | None = None) -> None:
    """Make a network fast, in place. Inference only afterwards.

    Args:
        network: with its weights, where it is to run.
        compiled: by torch's compiler, when it first runs; text encoders, which run once, are not.
        quantized: one of ``execution.QUANTIZATIONS``, for UNets: not the same numbers any more.
    """
    compiled = compiled and isinstance(network, UNet | VAE)
    on_cpu = next(network.parameters()).device.type == "cpu"
    fuse(network)
    if isinstance(network, UNet) and quantized == "int8-weights":
        quantize_weights(network)
    elif isinstance(network, UNet) and quantized == "int8" and on_cpu:
        quantize_products(network)
    elif isinstance(network, UNet) and quantized is not None:
        quantize(network, quantized)
    use_blocks(network)
    if not compiled:
        pack(network)
    if compiled or not on_cpu:
        cast(Any, network).to(memory_format=torch.channels_last)  # as accelerators' convolutions read it
    if compiled:
        compile_network(network)
