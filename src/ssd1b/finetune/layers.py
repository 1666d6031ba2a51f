"""Adapters in training, beside frozen weights.

A LoRA is a ``training.low_rank.LowRank``. Adapters of other kinds compute the changed weight by the formulas
with which they are applied (``adapters.kinds``). DoRA's norm is part of the gradient, as in the paper's
equation 5; PEFT treats it as a constant (section 4.3).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssd1b.adapters.kinds import weight_change
from ssd1b.adapters.names import PARTS, Module
from ssd1b.errors import InputError, shown
from ssd1b.finetune.settings import TARGETS, TEXT_TARGETS, FinetuneSettings
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.training.low_rank import LowRank, attach, lora_tensors

_OF_KIND = {"lora": "LoRA", "dora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}


class Trained(NamedTuple):
    """The adapter of one module, as in a file.

    Attributes:
        tensors: by role, float32 on the CPU.
        scale: what their product is multiplied by.
    """

    tensors: Mapping[str, Tensor]
    scale: float


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


def adapt(network: UNet | TextEncoder, settings: FinetuneSettings, part: str = "unet") -> None:
    """Freeze a network and give its chosen modules adapters, with random numbers from the settings' seed.

    Args:
        network: the UNet or a text encoder.
        settings: kind, rank, and which modules.
        part: which network it is, one of ``names.PARTS``.

    Raises:
        InputError: no module is chosen.
    """
    network.requires_grad_(False)
    chosen = adapted_modules(network, settings, part)
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed + PARTS.index(part))
        for module in chosen.values():
            weight: Tensor = module.weight  # type: ignore[assignment]
            if settings.kind == "lora":
                attach(module, settings.rank, settings.scale)
            else:
                adapter = AdaptedWeight(weight.detach(), settings.kind, settings.rank, settings.scale)
                parametrize.register_parametrization(module, "weight", adapter.to(weight.device), unsafe=True)


def adapted_modules(
    network: UNet | TextEncoder, settings: FinetuneSettings, part: str = "unet"
) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the modules of a network that the settings choose, by name.

    The last layer of the first text encoder is left out: the UNet gets the states before it.

    Raises:
        InputError: there are none, or no module of the UNet begins with one of ``blocks``.
    """
    ends = TARGETS if isinstance(network, UNet) else TEXT_TARGETS
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(ends[settings.targets])
    }
    if isinstance(network, TextEncoder):
        unused = f"text_model.encoder.layers.{network.layout.layers - 1}"
        return {n: each for n, each in found.items() if part != "text_encoder" or not _below(n, unused)}
    for block in settings.blocks:
        if not any(_below(name, block) for name in found):
            known = ", ".join(_blocks(found))
            raise InputError(f"no module with an adapter is in block {shown(block)}: blocks are {known}")
    blocks = settings.blocks
    return {name: each for name, each in found.items() if not blocks or any(_below(name, b) for b in blocks)}


def trained_adapters(network: nn.Module, part: str = "unet") -> dict[Module, Trained]:
    """Return the adapter of each module of a network that ``adapt`` changed."""
    found: dict[Module, Trained] = {}
    for name, module in network.named_modules():
        if isinstance(module, LowRank | AdaptedWeight):
            tensors = {role: each.detach().float().cpu() for role, each in module.tensors.items()}
            owner = name.removesuffix(".adapter").split(".parametrizations.")[0]
            found[Module(part, owner)] = Trained(tensors, module.scale)
    return found


def _below(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _blocks(names: Mapping[str, object]) -> list[str]:
    depth = {"down_blocks": 2, "up_blocks": 2}
    return sorted({".".join(name.split(".")[: depth.get(name.split(".")[0], 1)]) for name in names})


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


_INITIAL = {"LoRA": lora_tensors, "LoHa": _loha, "LoKr": _lokr}
