"""A model's networks from their files, each as it is to compute."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from ssd1b.computing import Computing
from ssd1b.errors import InputError
from ssd1b.layouts import UNetLayout
from ssd1b.speed import openvino
from ssd1b.speed.packing import FORMATS
from ssd1b.speed.preparing import prepare
from ssd1b.speed.quantizing import check_quantization
from ssd1b.speed.residence import Room, in_turn
from ssd1b.speed.rounding import rounds_fast
from ssd1b.weights.checkpoint import Checkpoint
from ssd1b.weights.loading import load_component, stored_dtype

Network = TypeVar("Network", bound=nn.Module)


def check_computing(computing: Computing, device: torch.device, dtype: torch.dtype) -> None:
    """See that this machine can compute so.

    Raises:
        InputError: a library is missing, or the device does not do it, or not both at once.
    """
    if computing.backend == "openvino":
        openvino.check_openvino(device, quantized=computing.quantized is not None)
    elif computing.quantized in ("int8", "fp8"):
        check_quantization(computing.quantized, device, dtype)
        if computing.compiled and computing.quantized == "int8" and device.type == "cpu":
            raise InputError("on a CPU quantize int8 has kernels of its own: leave compile out")


WIDE = 256
"""Channels of the widest level from which a UNet is faster in eight bits: SSD-1B's 1280 take half the time,
the miniatures' 96 take 0.9 of it in batches of 8 and 1.4 alone (docs/log)."""


def settle(computing: Computing, unet: UNetLayout, device: torch.device, dtype: torch.dtype) -> Computing:
    """Decide what is left to the program, for one model on this machine."""
    if computing.quantized != "auto":
        return computing
    wide = max(level.channels for level in unet.levels) >= WIDE
    able = device.type == "cpu" and dtype in FORMATS and not computing.compiled
    return replace(computing, quantized="int8" if wide and able and rounds_fast() else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """Loads the networks of one model.

    Attributes:
        checkpoint: where from.
        device: where to.
        dtype: number format to compute in.
        computing: how.
        told: hears of what takes minutes the first time.
    """

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    computing: Computing
    told: Callable[[str], None]
    _room: Room = field(default_factory=Room)

    def network(self, kind: type[Network], layout: Any, part: str) -> Network:
        """Load one, or with low memory and with OpenVINO what stands in its place.

        Args:
            kind: its class.
            layout: what it is built of.
            part: its name in the checkpoint.

        Raises:
            InputError: files that are damaged or contradict each other.
        """
        with torch.device("meta"):  # nothing is allocated before the files have been checked
            empty: Any = kind(layout)
        converted = self.computing.backend == "openvino" and part in ("unet", "vae")
        if self.computing.memory == "low" and part != "vae":
            return in_turn(empty, self.checkpoint, part, self._room, dtype=self.dtype, device=self.device)
        if converted:
            load_component(empty, self.checkpoint, part, dtype=stored_dtype(self.checkpoint, part))
            stand_in: Any = openvino.stand_in(empty, self.checkpoint.parts[part], self.dtype, self.told)
            return stand_in
        load_component(empty, self.checkpoint, part, dtype=self.dtype, device=self.device)
        empty.requires_grad_(False).eval()
        prepare(empty, compiled=self.computing.compiled, quantized=self.computing.quantized)
        return empty
