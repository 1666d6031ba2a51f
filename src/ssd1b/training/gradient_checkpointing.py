"""Memory for time: what happens inside blocks is computed again on the way back (1604.06174)."""

from functools import partial
from typing import Any

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

    For GPUs, whose memory is short; ``kernels.quicken`` compiles the same blocks for CPUs, and the two do not
    go together.
    """
    for block in checkpointed_blocks(model):
        block.forward = partial(_recomputed, block)  # type: ignore[method-assign]


def _recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """Apply a block now and, for its gradients, once more.

    The second time is after the model's own call, when ``precision.computing_in`` has taken its rounded
    weights away again: they are remembered.
    """
    weights = {f"block.{name}": parameter for name, parameter in block.named_parameters()}
    return checkpoint(functional_call, _Plain(block), weights, inputs, use_reentrant=False)


class _Plain(nn.Module):
    """A block under its class's own forward."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Tensor:
        return type(self.block).forward(self.block, *inputs)
