"""The UNet's matrices multiplied in eight bits, on GPUs by torchao: on some hardware in less time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ssd1b.errors import InputError
from ssd1b.extras import require
from ssd1b.speed.rounding import rounds_fast


@dataclass(frozen=True, slots=True)
class Quantization:
    """A way to keep matrices in eight bits.

    Attributes:
        config: torchao's, made from its module ``torchao.quantization``.
        smallest: numbers in a matrix below which it stays, since rounding would cost more than it saves.
    """

    config: Callable[[Any], Any]
    smallest: int


QUANTIZATIONS: Mapping[str, Quantization] = MappingProxyType({
    # Feed-forward and the widest projections: smaller matrices are hardly faster in float8 on a Hopper GPU
    # (docs/log), and each costs a pass to round what it multiplies.
    "fp8": Quantization(
        lambda ao: ao.Float8DynamicActivationFloat8WeightConfig(
            granularity=ao.PerRow(), set_inductor_config=False
        ),
        smallest=2**21,
    ),
    "int8": Quantization(
        lambda ao: ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False), smallest=2**17
    ),
})  # fmt: skip
"""What multiplies in eight bits, activations rounded row by row as they come."""


def check_quantization(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """See that matrices can be multiplied so.

    Raises:
        InputError: torchao is missing, or the device does not multiply so.
    """
    if name == "int8" and device.type == "cpu":
        if not rounds_fast():
            raise InputError(
                "quantize int8 needs a processor that multiplies eight bits (VNNI), and this one does not: "
                "take int8-weights, which saves memory"
            )
        if dtype == torch.float16:
            raise InputError(
                "quantize int8 computes in fp32 or bf16 on a CPU, not in fp16: say so with dtype"
            )
        return
    require(f"quantize {name}", "torchao")
    if name == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise InputError(
            "quantize fp8 needs a GPU that multiplies it, NVIDIA's Ada, Hopper or later: take int8"
        )


def quantize(network: nn.Module, name: str) -> None:
    """Round the matrices of a network's transformers, in place; convolutions stay as they are.

    Keys and values of the text stay, too: they are computed once a picture.

    Args:
        network: with its weights, where it is to run.
        name: one of ``QUANTIZATIONS``.
    """
    ao = import_module("torchao.quantization")
    way = QUANTIZATIONS[name]

    def chosen(module: nn.Module, path: str) -> bool:
        once = path.endswith(("attn2.to_k", "attn2.to_v"))
        large = isinstance(module, nn.Linear) and module.weight.numel() >= way.smallest
        return large and "attentions." in path and not once

    ao.quantize_(network, way.config(ao), filter_fn=chosen)
