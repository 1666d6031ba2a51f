"""Everything that makes a network draw faster, in its order."""

from typing import Any, cast

import torch
from torch import nn

from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.speed.blocks import use_blocks
from ssd1b.speed.compiling import compile_network
from ssd1b.speed.eight_bits import keep_in_eight_bits
from ssd1b.speed.fusing import fuse
from ssd1b.speed.packing import pack
from ssd1b.speed.quantizing import quantize
from ssd1b.speed.rounding import round_products


def prepare(network: nn.Module, *, compiled: bool = False, quantized: str | None = None) -> None:
    """Make a network fast, in place; it does not learn from then on.

    Args:
        network: with its weights, where it is to run.
        compiled: by torch's compiler, when it first runs; text encoders, which run once, are not.
        quantized: one of ``computing.QUANTIZATIONS``, for UNets: not the same numbers any more.
    """
    compiled = compiled and isinstance(network, UNet | VAE)
    on_cpu = next(network.parameters()).device.type == "cpu"
    fuse(network)
    if isinstance(network, UNet) and quantized == "int8-weights":
        keep_in_eight_bits(network)
    elif isinstance(network, UNet) and quantized == "int8" and on_cpu:
        round_products(network)
    elif isinstance(network, UNet) and quantized is not None:
        quantize(network, quantized)
    use_blocks(network)
    if not compiled:
        pack(network)
    if compiled or not on_cpu:
        cast(Any, network).to(memory_format=torch.channels_last)  # as accelerators' convolutions read it
    if compiled:
        compile_network(network)
