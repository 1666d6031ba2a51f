"""A student that is a LoRA of a model: its layers, and its file."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ssd1b.adapters.dialects import Piece, spelled
from ssd1b.adapters.matching import match
from ssd1b.adapters.names import Module
from ssd1b.adapters.reading import open_adapter
from ssd1b.errors import FailedError, InputError, shown
from ssd1b.files import named
from ssd1b.layouts import ModelLayout, UNetLayout
from ssd1b.models.unet import UNet
from ssd1b.saving import renewing
from ssd1b.training.low_rank import LowRank, attach
from ssd1b.weights.files import first_few, is_finite, write_tensors


def _layers(unet: UNet) -> Iterator[tuple[nn.Linear | nn.Conv2d, int]]:
    """The layers that get a LoRA, each with its largest rank."""
    for module in unet.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield module, min(module.weight.flatten(1).shape)


def _loras(unet: nn.Module) -> dict[str, LowRank]:
    """The LoRA of each layer, by the layer's name."""
    return {
        name.removesuffix(".adapter"): module
        for name, module in unet.named_modules()
        if isinstance(module, LowRank)
    }


def with_lora(unet: UNet, rank: int, seed: int) -> UNet:
    """Freeze a UNet, and give its linear and convolution layers a LoRA, at first without effect.

    Args:
        unet: is changed, and returned.
        rank: of each layer, or the largest that it can have.
        seed: of the random numbers.
    """
    unet.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module, largest in list(_layers(unet)):
            attach(module, min(rank, largest), 1.0)
    return unet


def start_from(unet: UNet, path: Path, layout: ModelLayout) -> None:
    """Fill the LoRA of a UNet with that of a file; layers that the file lacks stay without effect.

    Args:
        unet: of ``with_lora``.
        path: the file, in any spelling.
        layout: of the model.

    Raises:
        InputError: it is no adapter, does not fit the model, or has other layers or ranks.
    """
    found = match(open_adapter(path), layout)
    if found.unmatched:
        raise InputError(f"{named(path)} does not fit the student: {first_few(found.unmatched)}")
    layers = _loras(unet)
    for module, weights in found.targets.items():
        lora = layers.get(module.name) if module.part == "unet" else None
        own: Mapping[str, Tensor] = {} if lora is None else dict(lora.tensors.items())
        stored = found.adapter.stored(weights)
        if {role: each.shape for role, each in stored.items()} != {r: each.shape for r, each in own.items()}:
            raise InputError(
                f"{named(path)}: {shown(weights.name)} is not what is trained, the UNet's LoRA of that rank"
            )
        rank = len(stored["down"])
        own["down"].data.copy_(stored["down"])
        own["up"].data.copy_(stored["up"].float() * (weights.numbers.get("alpha", rank) / rank))


def lora_parameters(layout: UNetLayout, rank: int) -> int:
    """Return the number of a LoRA's parameters."""
    with torch.device("meta"):
        unet = UNet(layout)
    return sum(min(rank, largest) * sum(module.weight.flatten(1).shape) for module, largest in _layers(unet))


def write_lora(
    path: Path, unet: nn.Module, layout: ModelLayout, dtype: torch.dtype, metadata: Mapping[str, str], *,
    overwrite: bool,
) -> None:  # fmt: skip
    """Write the LoRA of a UNet with kohya's names.

    Args:
        path: of the new file.
        unet: of ``with_lora``, after the training.
        layout: of the model.
        dtype: number format of the file.
        metadata: texts for the header.
        overwrite: see ``renewing``.

    Raises:
        FailedError: it contains NaN or infinity; nothing is written.
    """
    pieces: dict[Module, Piece] = {}
    for name, lora in _loras(unet).items():
        tensors = {role: each.detach().cpu() for role, each in lora.tensors.items()}
        if not all(map(is_finite, tensors.values())):
            raise FailedError(f"{name} is NaN or infinite: not saved; take a lower learning rate")
        pieces[Module("unet", name)] = Piece(tensors, {"alpha": float(len(tensors["down"]))}).to(dtype)
    with renewing(path, overwrite=overwrite) as aside:
        tensors, header = spelled(pieces, layout, "kohya")
        write_tensors(aside, tensors, {**metadata, **header})
