"""Training in 16 bits with 32-bit parameters, where the hardware gains by it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ssd1b.runtime import choose_dtype
from ssd1b.training.gradient_checkpointing import rounds_itself


def training_dtype(device: torch.device | str) -> torch.dtype:
    """The number format in which a device trains fastest: bfloat16 where it has it in hardware, else float32.

    Not float16: its gradients would need scaling.
    """
    dtype = choose_dtype(None, torch.device(device))
    return torch.float32 if dtype is torch.float16 else dtype


def computing_in(dtype: torch.dtype, module: nn.Module) -> Callable[..., Any]:
    """Call ``module`` with its parameters rounded to ``dtype``; gradients reach the float32 originals.

    Every operation runs in 16 bits, which is what makes it faster than autocast on a CPU (docs/log); the
    optimiser still sees float32 weights, which steps smaller than bfloat16's spacing need. Arguments are
    passed as they are: timesteps must stay exact, since bfloat16 knows only multiples of 4 near 999.
    """
    if dtype is torch.float32:
        return module
    if any(hasattr(parameter, "device_mesh") for parameter in module.parameters()):
        return lambda *args: _autocast(dtype, module, *args)  # FSDP puts weights together inside the call
    # Blocks with gradient checkpointing round their weights one block at a time.
    later = {id(each) for block in module.modules() if rounds_itself(block) for each in block.parameters()}
    rounded = {
        name: parameter.to(dtype)
        for name, parameter in module.named_parameters()
        if id(parameter) not in later
    }
    return lambda *args: functional_call(module, rounded, args)


def _autocast(dtype: torch.dtype, module: nn.Module, *args: Any) -> Any:
    with torch.autocast(next(module.parameters()).device.type, dtype):
        return module(*args)
