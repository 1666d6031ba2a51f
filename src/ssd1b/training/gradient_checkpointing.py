"""Gradient checkpointing (1604.06174): blocks are computed again in the backward pass, to save memory."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ssd1b.models.attention import TransformerBlock
from ssd1b.models.layers import ResnetBlock


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that are computed again; none contains another."""
    return [module for module in model.modules() if isinstance(module, TransformerBlock | ResnetBlock)]


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep only the inputs of each transformer and residual block for the backward pass.

    Gradients do not change. A block then also rounds its own weights to the number format of its input, each
    time that it computes, so that the rounded weights of only one block are in memory at a time.

    For GPUs, whose memory is short. It cannot be combined with ``kernels.use_fast_cpu_kernels``, which
    compiles the same blocks for CPUs.
    """
    for block in checkpointed_blocks(model):
        block.forward = partial(_recomputed, block)  # type: ignore[method-assign]


def rounds_itself(block: nn.Module) -> bool:
    """Return whether ``checkpoint_gradients`` was applied to this block."""
    return "forward" in vars(block) and isinstance(block, TransformerBlock | ResnetBlock)


def _recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """Apply a block now, and again in the backward pass with the weights that it has now.

    By the second time, a caller of ``functional_call`` has put the original weights back.
    """
    return checkpoint(_rounded, _Plain(block), dict(block.named_parameters()), inputs, use_reentrant=False)


def _rounded(block: "_Plain", weights: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    x = inputs[0]
    # Autocast rounds by itself, and leaves norms in 32 bits.
    dtype = None if torch.is_autocast_enabled(x.device.type) else x.dtype
    rounded = {f"block.{name}": weight.to(dtype) for name, weight in weights.items()}
    return functional_call(block, rounded, inputs)


class _Plain(nn.Module):
    """A block with the forward method of its class."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Tensor:
        return type(self.block).forward(self.block, *inputs)
