"""Memory for time: what happens inside blocks is computed again on the way back (1604.06174)."""

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
    """The blocks whose inside is computed again; none holds another."""
    return [module for module in model.modules() if isinstance(module, TransformerBlock | ResnetBlock)]


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep of each transformer and residual block its inputs alone; gradients stay what they were.

    A block then also rounds its own weights to the number format of its input, each time that it computes,
    so that the rounded weights of one block are in memory and never those of the whole network.

    For GPUs, whose memory is short; ``kernels.quicken`` compiles the same blocks for CPUs, and the two do not
    go together.
    """
    for block in checkpointed_blocks(model):
        block.forward = partial(_recomputed, block)  # type: ignore[method-assign]


def rounds_itself(block: nn.Module) -> bool:
    """Whether ``checkpoint_gradients`` was applied to this block."""
    return "forward" in vars(block) and isinstance(block, TransformerBlock | ResnetBlock)


def _recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """Apply a block now and, for its gradients, once more.

    The second time is after the model's own call, when a caller that put other weights in place has taken
    them away again: they are remembered.
    """
    return checkpoint(_rounded, _Plain(block), dict(block.named_parameters()), inputs, use_reentrant=False)


def _rounded(block: "_Plain", weights: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    x = inputs[0]
    # Autocast rounds by itself, and leaves norms in 32 bits.
    dtype = None if torch.is_autocast_enabled(x.device.type) else x.dtype
    rounded = {f"block.{name}": weight.to(dtype) for name, weight in weights.items()}
    return functional_call(block, rounded, inputs)


class _Plain(nn.Module):
    """A block under its class's own forward."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Tensor:
        return type(self.block).forward(self.block, *inputs)
