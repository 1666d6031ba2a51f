"""Adapters in training, beside frozen weights.

A LoRA's two products run beside each module, as in the paper: neither the changed weight nor its gradient,
which costs as much as a forward pass, is ever computed. Adapters of other kinds compute the changed weight by
the formulas with which they are applied (``adapters.kinds``). DoRA's norm is part of the gradient, as in the
paper's equation 5; PEFT treats it as a constant (section 4.3).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ssd1b.adapters.kinds import weight_change
from ssd1b.adapters.names import Module
from ssd1b.errors import InputError, shown
from ssd1b.finetune.settings import TARGETS, FinetuneSettings
from ssd1b.models.unet import UNet

_OF_KIND = {"lora": "LoRA", "dora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}


class Trained(NamedTuple):
    """The adapter of one module, as in a file.

    Attributes:
        tensors: by role, float32 on the CPU.
        scale: what their product is multiplied by.
    """

    tensors: Mapping[str, Tensor]
    scale: float


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
        tensors = _lora(module.weight, rank)
        self.tensors = nn.ParameterDict({role: nn.Parameter(each) for role, each in tensors.items()})

    def change(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Add the products to the module's output."""
        if not self.enabled:
            return output
        down, up = self.tensors["down"], self.tensors["up"]
        if isinstance(module, nn.Conv2d):
            inner = F.conv2d(inputs[0], down, None, module.stride, module.padding, module.dilation)
            return output + F.conv2d(inner, self.scale * up)
        return output + F.linear(F.linear(inputs[0], down), self.scale * up)


def _with_low_rank(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook that finds the adapter in its module, also in a copy of both."""
    adapter = module.adapter
    assert isinstance(adapter, LowRank)
    return adapter.change(module, inputs, output)


class AdaptedWeight(nn.Module):
    """A parametrization that adds an adapter's change to a frozen weight; at first the change is zero.

    Args:
        weight: the original, ``[out, in]`` or ``[out, in, h, w]``.
        kind: one of ``settings.KINDS``.
        rank: of the products.
        scale: what they are multiplied by.
    """

    def __init__(self, weight: Tensor, kind: str, rank: int, scale: float) -> None:
        super().__init__()
        self._kind, self.scale, self.enabled = _OF_KIND[kind], scale, True
        tensors = _INITIAL[_OF_KIND[kind]](weight, rank)
        if kind == "dora":
            norms = torch.linalg.vector_norm(weight.float().flatten(1), dim=1)
            tensors["dora"] = norms.reshape(-1, *[1] * (weight.ndim - 1))
        self.tensors = nn.ParameterDict({role: nn.Parameter(each) for role, each in tensors.items()})

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the change, in the weight's number format."""
        if not self.enabled:
            return weight
        change = weight_change(self._kind, weight, dict(self.tensors.items()), {"scale": self.scale})
        return weight + change.to(weight.dtype)


def adapt(unet: UNet, settings: FinetuneSettings) -> None:
    """Freeze a UNet and give its chosen modules adapters, with random numbers from the settings' seed.

    Raises:
        InputError: no module is chosen.
    """
    unet.requires_grad_(False)
    chosen = adapted_modules(unet, settings)
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        for module in chosen.values():
            weight: Tensor = module.weight  # type: ignore[assignment]
            if settings.kind == "lora":
                module.adapter = LowRank(module, settings.rank, settings.scale).to(weight.device)
                module.register_forward_hook(_with_low_rank)
            else:
                adapter = AdaptedWeight(weight.detach(), settings.kind, settings.rank, settings.scale)
                parametrize.register_parametrization(module, "weight", adapter.to(weight.device), unsafe=True)


def adapted_modules(unet: UNet, settings: FinetuneSettings) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the modules that the settings choose, by name.

    Raises:
        InputError: there are none, or no module's name begins with one of ``blocks``.
    """
    found = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(TARGETS[settings.targets])
    }
    for block in settings.blocks:
        if not any(_below(name, block) for name in found):
            known = ", ".join(_blocks(found))
            raise InputError(f"no module with an adapter is in block {shown(block)}: blocks are {known}")
    blocks = settings.blocks
    return {name: each for name, each in found.items() if not blocks or any(_below(name, b) for b in blocks)}


def trained_adapters(unet: nn.Module) -> dict[Module, Trained]:
    """Return the adapter of each module of a UNet that ``adapt`` changed."""
    found: dict[Module, Trained] = {}
    for name, module in unet.named_modules():
        if isinstance(module, LowRank | AdaptedWeight):
            tensors = {role: each.detach().float().cpu() for role, each in module.tensors.items()}
            owner = name.removesuffix(".adapter").removesuffix(".parametrizations.weight.0")
            found[Module("unet", owner)] = Trained(tensors, module.scale)
    return found


def _below(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _blocks(names: Mapping[str, object]) -> list[str]:
    depth = {"down_blocks": 2, "up_blocks": 2}
    return sorted({".".join(name.split(".")[: depth.get(name.split(".")[0], 1)]) for name in names})


def _lora(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """A random down and a zero up (2106.09685, section 4.1)."""
    out, channels, *kernel = weight.shape
    down = torch.empty(rank, channels, *kernel)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return {"down": down, "up": torch.zeros(out, rank, *[1] * len(kernel))}


def _loha(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """LyCORIS' standard deviations; the second product is zero."""
    out, columns = weight.flatten(1).shape
    return {
        "hada_w1_a": 0.1 * torch.randn(out, rank), "hada_w1_b": torch.randn(rank, columns),
        "hada_w2_a": torch.zeros(out, rank), "hada_w2_b": torch.randn(rank, columns),
    }  # fmt: skip


def _lokr(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """A complete small factor, and a large one as a product, which is zero."""
    out, channels, *kernel = weight.shape
    rows, columns = _factor(out), _factor(channels)
    small, b = torch.empty(rows, columns), torch.empty(rank, channels // columns * math.prod(kernel))
    for each in (small, b):
        nn.init.kaiming_uniform_(each, a=math.sqrt(5))
    return {"lokr_w1": small, "lokr_w2_a": torch.zeros(out // rows, rank), "lokr_w2_b": b}


def _factor(size: int) -> int:
    """Return the largest divisor up to the square root, as LyCORIS without a factor does."""
    return next(each for each in range(math.isqrt(size), 0, -1) if size % each == 0)


_INITIAL = {"LoRA": _lora, "LoHa": _loha, "LoKr": _lokr}
