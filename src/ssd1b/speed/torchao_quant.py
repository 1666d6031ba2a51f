"""Int8 and float8 matrix products for the UNet on GPUs, by torchao."""

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
        config: makes torchao's configuration from its module ``torchao.quantization``.
        smallest: elements of the smallest matrix worth quantizing.
    """

    config: Callable[[Any], Any]
    smallest: int


QUANTIZATIONS: Mapping[str, Quantization] = MappingProxyType({
    # Feed-forward and the widest projections. Smaller matrices are hardly faster in float8 on a Hopper GPU
    # (docs/log), and quantizing the activations costs an extra kernel each.
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
"""Schemes with dynamically quantized activations, row by row."""


def check_quantization(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check that a quantization is supported.

    Raises:
        InputError: torchao is not installed, or the device does not support the scheme.
    """
    if name == "int8" and device.type == "cpu":
        if not int8_is_fast():
            raise UnavailableError(
                "quantize int8 needs a processor with int8 instructions (VNNI), which this one lacks: "
                "use int8-weights, which saves memory"
            )
        if dtype == torch.float16:
            raise InputError(
                "quantize int8 computes in fp32 or bf16 on a CPU, not in fp16: set dtype to one of them"
            )
        return
    require(f"quantize {name}", "torchao")
    if name == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise UnavailableError(
            "quantize fp8 needs a GPU with fp8 products (NVIDIA Ada, Hopper or later): use int8"
        )


def quantize(network: nn.Module, name: str) -> None:
    """Quantize the matrices of a network's transformers, in place.

    Convolutions are not quantized, nor are the projections of the text to keys and values, which run once
    per image.

    Args:
        network: the network, on its device.
        name: one of ``QUANTIZATIONS``.
    """
    ao = import_module("torchao.quantization")
    scheme = QUANTIZATIONS[name]

    def is_quantized(module: nn.Module, path: str) -> bool:
        runs_once = path.endswith(("attn2.to_k", "attn2.to_v"))
        large = isinstance(module, nn.Linear) and module.weight.numel() >= scheme.smallest
        return large and "attentions." in path and not runs_once

    ao.quantize_(network, scheme.config(ao), filter_fn=is_quantized)
