"""A LoRA in training, beside a frozen module.

Its two products run beside the module, as in the paper: neither the changed weight nor its gradient, which
costs as much as a forward pass, is ever computed.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """A LoRA beside a module (2106.09685, equation 3); at first its output is zero.

    Args:
        module: the frozen module.
        rank: of the products.
        scale: what they are multiplied by.
    """

    def __init__(self, module: nn.Linear | nn.Conv2d, rank: int, scale: float) -> None:
        super().__init__()
        self.scale, self.enabled = scale, True
        tensors = lora_tensors(module.weight, rank)
        self.tensors = nn.ParameterDict({role: nn.Parameter(each) for role, each in tensors.items()})

    def change(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Add the products to the module's output."""
        if not self.enabled:
            return output
        # A frozen network may compute in 16 bits; in a training, ``computing_in`` has rounded them before.
        down, up = (self.tensors[role].to(output.dtype) for role in ("down", "up"))
        if isinstance(module, nn.Conv2d):
            inner = F.conv2d(inputs[0], down, None, module.stride, module.padding, module.dilation)
            return output + F.conv2d(inner, self.scale * up)
        return output + F.linear(F.linear(inputs[0], down), self.scale * up)


def _with_low_rank(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook that finds the adapter in its module, also in a copy of both."""
    adapter = module.adapter
    assert isinstance(adapter, LowRank)
    return adapter.change(module, inputs, output)


def attach(module: nn.Linear | nn.Conv2d, rank: int, scale: float) -> None:
    """Give a module a LoRA, its ``adapter``, on the module's device."""
    module.adapter = LowRank(module, rank, scale).to(module.weight.device)
    module.register_forward_hook(_with_low_rank)


def lora_tensors(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """A random down and a zero up (2106.09685, section 4.1)."""
    out, channels, *kernel = weight.shape
    down = torch.empty(rank, channels, *kernel)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return {"down": down, "up": torch.zeros(out, rank, *[1] * len(kernel))}
