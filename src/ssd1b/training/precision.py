"""Mixed precision: 16-bit computation with 32-bit parameters, where the hardware is faster."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ssd1b.runtime import choose_dtype
from ssd1b.training.gradient_checkpointing import rounds_itself
from ssd1b.training.trained import trained_parameters


def training_dtype(device: torch.device | str) -> torch.dtype:
    """Return the number format in which a device trains fastest.

    That is bfloat16 if its hardware has it, else float32; never float16, whose gradients would need scaling.
    """
    dtype = choose_dtype(None, torch.device(device))
    return torch.float32 if dtype is torch.float16 else dtype


def computing_in(dtype: torch.dtype, module: nn.Module) -> Callable[..., Any]:
    """Call ``module`` with its trained parameters rounded to ``dtype``; gradients reach the originals.

    Every operation runs in 16 bits, which is faster than autocast on a CPU (docs/log). The optimiser still
    sees float32 parameters, which it needs for steps smaller than bfloat16's spacing. Frozen parameters are
    used as stored, see ``convert_frozen``. Arguments are passed unchanged: timesteps must stay exact, since
    bfloat16 holds only multiples of 4 near 999.
    """
    if dtype is torch.float32:
        return module
    if any(hasattr(parameter, "device_mesh") for parameter in module.parameters()):
        return lambda *args: _autocast(dtype, module, *args)  # FSDP gathers parameters inside the call
    # Blocks with gradient checkpointing round their weights one block at a time.
    later = {id(each) for block in module.modules() if rounds_itself(block) for each in block.parameters()}
    rounded = {
        name: parameter.to(dtype)
        for name, parameter in trained_parameters(module).items()
        if id(parameter) not in later
    }
    return lambda *args: functional_call(module, rounded, args)


def convert_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert frozen parameters, once, to the number format in which ``computing_in`` computes; not int8."""
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _autocast(dtype: torch.dtype, module: nn.Module, *args: Any) -> Any:
    with torch.autocast(next(module.parameters()).device.type, dtype):
        return module(*args)
