"""The UNet's matrices multiplied in int8 or float8 by torchao, on GPUs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ssd1b.errors import InputError, UnavailableError
from ssd1b.extras import require
from ssd1b.speed.int8_cpu import int8_is_fast


@dataclass(frozen=True, slots=True)
class Quantization:
    """A quantization scheme of torchao.

    Attributes:
        config: torchao's, made from its module ``torchao.quantization``.
        smallest: numbers in a matrix below which it is not quantized, since that costs more than it saves.
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
"""Schemes that quantize activations dynamically, row by row."""


def check_quantization(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check that this machine supports a quantization.

    Raises:
        InputError: torchao is missing, or the device does not support the scheme.
    """
    if name == "int8" and device.type == "cpu":
        if not int8_is_fast():
            raise UnavailableError(
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
        raise UnavailableError(
            "quantize fp8 needs a GPU that multiplies it, NVIDIA's Ada, Hopper or later: take int8"
        )


def quantize(network: nn.Module, name: str) -> None:
    """Quantize the matrices of a network's transformers, in place; convolutions are not quantized.

    Neither are the projections of the text to keys and values, which run once a picture.

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
