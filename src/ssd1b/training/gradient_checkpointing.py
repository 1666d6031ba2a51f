"""Gradient checkpointing (1604.06174): blocks are recomputed in the backward pass, to save memory."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ssd1b.models.attention import TransformerBlock
from ssd1b.models.layers import ResnetBlock
from ssd1b.models.text import TextLayer

_BLOCKS = (TransformerBlock, ResnetBlock, TextLayer)


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks to recompute; none contains another."""
    return [module for module in model.modules() if isinstance(module, _BLOCKS)]


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep only the inputs of each transformer block, residual block and text layer for the backward pass.

    Gradients do not change. Each block also rounds its own weights to the number format of its input whenever
    it runs, so that only one block's rounded weights are in memory at a time.

    This cannot be combined with ``kernels.use_fast_cpu_kernels``, which compiles the same blocks for CPUs.
    """
    for block in checkpointed_blocks(model):
        block.forward = partial(_recomputed, block)  # type: ignore[method-assign]


def rounds_itself(block: nn.Module) -> bool:
    """Return whether ``checkpoint_gradients`` was applied to this block."""
    return "forward" in vars(block) and isinstance(block, _BLOCKS)


def _recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """Apply a block, and again in the backward pass with its present weights.

    They are passed along, since ``functional_call`` has restored the original ones by then.
    """
    return checkpoint(_rounded, _Plain(block), dict(block.named_parameters()), inputs, use_reentrant=False)


def _rounded(block: "_Plain", weights: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> Tensor:
    x = inputs[0]
    # Autocast does its own rounding, and leaves norms in 32 bits.
    dtype = None if torch.is_autocast_enabled(x.device.type) else x.dtype
    rounded = {
        f"block.{name}": weight.to(dtype) if weight.is_floating_point() else weight
        for name, weight in weights.items()
    }
    return functional_call(block, rounded, inputs)


class _Plain(nn.Module):
    """A block with the forward method of its class."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Tensor:
        return type(self.block).forward(self.block, *inputs)
