"""Backends that run a model's networks: torch here, OpenVINO in its own file, behind one protocol."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from ssd1b.errors import InputError
from ssd1b.execution import Execution
from ssd1b.layouts import UNetLayout
from ssd1b.model import NETWORKS, Model, load_tensors
from ssd1b.models.controlnet import ControlNet
from ssd1b.models.ip_adapter import IPAdapter
from ssd1b.models.t2i_adapter import T2IAdapter
from ssd1b.models.unet import Encoder, UNet
from ssd1b.models.vae import VAE
from ssd1b.models.vision import ImageEncoder
from ssd1b.speed.blocks import use_blocks
from ssd1b.speed.compiling import compile_network
from ssd1b.speed.fusing import fuse, with_fused
from ssd1b.speed.graphs import forget_records, record_forward
from ssd1b.speed.int8_cpu import int8_is_fast, quantize_products
from ssd1b.speed.offloading import LazyNetwork, ModelSlot
from ssd1b.speed.openvino import OpenVINOBackend, check_openvino
from ssd1b.speed.packing import PACKED_DTYPES, pack
from ssd1b.speed.replacement import replace_modules
from ssd1b.speed.torchao_quant import check_quantization, quantize
from ssd1b.speed.weight_only import quantize_weights
from ssd1b.weights.checkpoint import Checkpoint
from ssd1b.weights.loading import load_component

INT8_MIN_CHANNELS = 256
"""Channels of the widest level from which int8 makes a UNet faster. SSD-1B, with 1280, takes half the time;
the miniatures, with 96, take 0.9 of it in batches of 8 and 1.4 of it alone (docs/log)."""


@runtime_checkable
class Backend(Protocol):
    """Loads a model's networks and prepares them for inference."""

    def load(self, model: Model, part: str) -> Any:
        """Load one of ``keymap.PARTS``, ready to run; a UNet that needs calibration is not yet quantized.

        Raises:
            InputError: its files are damaged.
        """
        ...

    def adapt(self, model: Model, part: str, network: Any, names: Collection[str]) -> None:
        """Load some tensors of a network again, in place.

        Args:
            model: the model with other adapters than when the network was loaded.
            part: one of ``keymap.PARTS``.
            network: the network that ``load`` or ``calibrate`` returned.
            names: published names of the tensors that have changed.

        Raises:
            InputError: an adapter holds NaN or infinity.
        """
        ...

    def needs_calibration(self, model: Model) -> bool:
        """Whether the UNet's quantization still needs ``calibrate``."""
        ...

    def calibrate(self, model: Model, unet: Any, samples: Sequence[tuple[Any, ...]]) -> Any:
        """Quantize the UNet with activation ranges from samples, and cache the result on disk.

        Args:
            model: the model.
            unet: the UNet that ``load`` returned.
            samples: arguments of its calls.

        Returns:
            The quantized UNet, which ``load`` returns from now on.
        """
        ...


def choose_backend(
    execution: Execution, device: torch.device, dtype: torch.dtype, notify: Callable[[str], None]
) -> Backend:
    """Make the backend for execution options that passed ``check_execution`` and ``resolve_auto``.

    Args:
        execution: the execution options.
        device: device to run on.
        dtype: number format to compute in.
        notify: called with a message before work that takes minutes the first time.
    """
    torch_backend = TorchBackend(device=device, dtype=dtype, execution=execution)
    if execution.backend == "torch":
        return torch_backend
    quantized = execution.quantized is not None
    return OpenVINOBackend(
        dtype=dtype, quantized=quantized, notify=notify, load_other=torch_backend.load,
        adapt_other=torch_backend.adapt,
    )  # fmt: skip


def check_execution(execution: Execution, device: torch.device, dtype: torch.dtype) -> None:
    """Check that this machine supports the options.

    Raises:
        InputError: a library is not installed, or the device does not support an option or a combination.
    """
    if execution.backend == "openvino":
        check_openvino(device, quantized=execution.quantized is not None)
    elif execution.quantized in ("int8", "fp8"):
        check_quantization(execution.quantized, device, dtype)
        if execution.compiled and execution.quantized == "int8" and device.type == "cpu":
            raise InputError(
                "quantize int8 on a CPU has its own kernels, which cannot be compiled: omit compile"
            )


def resolve_auto(
    execution: Execution, unet: UNetLayout, device: torch.device, dtype: torch.dtype
) -> Execution:
    """Replace the quantization "auto" by int8 if that is faster for this UNet, else by none."""
    if execution.quantized != "auto":
        return execution
    wide = max(level.channels for level in unet.levels) >= INT8_MIN_CHANNELS
    supported = device.type == "cpu" and dtype in PACKED_DTYPES and not execution.compiled
    return replace(execution, quantized="int8" if wide and supported and int8_is_fast() else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBackend:
    """Runs networks with torch, on any device.

    Attributes:
        device: device to run on.
        dtype: number format to compute in.
        execution: compilation, quantization, memory mode.
    """

    device: torch.device
    dtype: torch.dtype
    execution: Execution
    _slot: ModelSlot = field(default_factory=ModelSlot)

    def load(self, model: Model, part: str) -> Any:
        """See ``Backend``. With low memory, returns a proxy that loads the network on use."""
        if self.execution.memory == "low" and part != "vae":
            read = partial(self._load_weight_only, model, part)
            layout = model.checkpoint.part(part).layout
            return LazyNetwork(cast(type, NETWORKS[part]), read, self._slot, layout=layout)
        network = model.network(part, device=self.device, dtype=self.dtype)
        prepare(network, compiled=self.execution.compiled, quantized=self.execution.quantized)
        return network

    def adapt(self, model: Model, part: str, network: Any, names: Collection[str]) -> None:
        """See ``Backend``. A quantized network on a GPU, or a compiled one on a CPU, is loaded as a whole."""
        if isinstance(network, LazyNetwork):
            network.read_with(partial(self._load_weight_only, model, part))
            return
        on_cpu, options = self.device.type == "cpu", self.execution
        by_torchao = options.quantized in ("int8", "fp8") and not on_cpu
        if part == "unet" and (by_torchao or (options.compiled and on_cpu)):
            replace_modules(network, self.load(model, part))
            forget_records(network)
            return
        tensors = model.tensors(part, with_fused(names), device=self.device, dtype=self.dtype)
        load_tensors(network, tensors)
        forget_records(network)

    def _load_weight_only(self, model: Model, part: str) -> nn.Module:
        """Read a network in 16 bits and quantize its weights to int8, layer by layer."""
        network = model.network(part, dtype=model.checkpoint.part(part).half_dtype, copied=True)
        if part == "unet":
            prepare(network, quantized="int8-weights")
        else:
            quantize_weights(network)
        return network.to(self.device, self.dtype)

    def load_control(self, checkpoint: Checkpoint) -> Any:
        """Load a network that reads a picture, ready to run.

        It is prepared as the UNet, but not compiled. With low memory, returns a proxy that loads it on use.

        Args:
            checkpoint: its only part is a name of ``CONTROL_NETWORKS``.

        Raises:
            InputError: its weights are damaged.
        """
        ((name, part),) = checkpoint.parts.items()
        kind = CONTROL_NETWORKS[name]

        def read(dtype: torch.dtype, device: torch.device | str, *, copied: bool = False) -> nn.Module:
            with torch.device("meta"):
                network = kind(part.layout)
            load_component(network, checkpoint, name, dtype=dtype, device=device, copied=copied)
            return network.requires_grad_(False).eval()

        def read_weight_only() -> nn.Module:
            network = read(part.half_dtype, "cpu", copied=True)
            prepare(network, quantized="int8-weights")
            return network.to(self.device, self.dtype)

        if self.execution.memory == "low":
            return LazyNetwork(cast(type, kind), read_weight_only, self._slot, layout=part.layout)
        network = read(self.dtype, self.device)
        prepare(network, quantized=self.execution.quantized)
        return network

    def needs_calibration(self, model: Model) -> bool:
        """See ``Backend``; activation ranges are dynamic here."""
        return False

    def calibrate(self, model: Model, unet: Any, samples: Sequence[tuple[Any, ...]]) -> Any:
        """See ``Backend``; returns the UNet unchanged."""
        return unet


CONTROL_NETWORKS: dict[str, Callable[[Any], nn.Module]] = {
    "controlnet": ControlNet,
    "t2i_adapter": T2IAdapter,
    "image_encoder": ImageEncoder,
    "ip_adapter": IPAdapter,
}
"""The class of each kind of network that reads a picture, built from its layout."""


def prepare(network: nn.Module, *, compiled: bool = False, quantized: str | None = None) -> None:
    """Fuse, quantize, pack and compile or record a network, in place. Inference only afterwards.

    Args:
        network: the network, on its device.
        compiled: compile when it first runs; ignored for text encoders, which run once.
        quantized: one of ``execution.QUANTIZATIONS``; ignored for networks other than UNets and
            ControlNets.
    """
    compiled = compiled and isinstance(network, UNet | VAE)
    on_cpu = next(network.parameters()).device.type == "cpu"
    fuse(network)
    if isinstance(network, Encoder) and quantized == "int8-weights":
        quantize_weights(network)
    elif isinstance(network, Encoder) and quantized == "int8" and on_cpu:
        quantize_products(network)
    elif isinstance(network, Encoder) and quantized is not None:
        quantize(network, quantized)
    use_blocks(network)
    if not compiled:
        pack(network)
    if compiled or not on_cpu:
        cast(Any, network).to(
            memory_format=torch.channels_last
        )  # the fastest for convolutions on accelerators
    if compiled:
        compile_network(network)
    elif isinstance(network, UNet):
        record_forward(network)
