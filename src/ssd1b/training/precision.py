"""Training in 16 bits with 32-bit parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def in_bfloat16(module: nn.Module) -> Callable[..., Any]:
    """Call ``module`` with its parameters rounded to bfloat16; gradients reach the float32 originals.

    Every operation runs in 16 bits, which is what makes it faster than autocast on a CPU (docs/log); the
    optimiser still sees float32 weights, which steps smaller than bfloat16's spacing need.
    """
    rounded = {name: parameter.to(torch.bfloat16) for name, parameter in module.named_parameters()}

    def call(*args: Any) -> Any:
        args = tuple(
            a.to(torch.bfloat16) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
        )
        return functional_call(module, rounded, args)

    return call
