"""Networks that are in memory one at a time."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn

from ssd1b.models.unet import UNet
from ssd1b.speed.eight_bits import keep_in_eight_bits
from ssd1b.speed.preparing import prepare
from ssd1b.weights.checkpoint import Checkpoint
from ssd1b.weights.loading import load_component, stored_dtype


class Room:
    """Memory for one network: who enters makes the one before leave."""

    def __init__(self) -> None:
        self.guest: OnDemand | None = None
        self.network: nn.Module | None = None

    def enter(self, guest: "OnDemand") -> nn.Module:
        """Give the guest's network, loading it if another one was here."""
        if self.guest is not guest or self.network is None:
            self.guest, self.network = None, None  # gone before the next one comes
            self.network = guest.load()
            self.guest = guest
        return self.network


class OnDemand:
    """Stands for a network that is loaded when it is used, and again when another one was here since.

    It says that it is of the network's class, as proxies do, and what is asked of it is asked of the network;
    only what is ``known`` is answered without loading it.
    """

    def __init__(
        self, kind: type[nn.Module], load: Callable[[], nn.Module], room: Room, **known: Any
    ) -> None:
        self.kind, self.load, self.room = kind, load, room
        self.__dict__ |= known

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """For ``isinstance``."""
        return self.kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.room.enter(self), name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the network."""
        return self.room.enter(self)(*args, **named)


def in_turn(
    empty: nn.Module,
    checkpoint: Checkpoint,
    part: str,
    room: Room,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """A network that comes into memory, its weights in eight bits, when it is used.

    Args:
        empty: the network on the meta device.
        checkpoint: where its weights are.
        part: which of its networks.
        room: that it shares with others.
        dtype: number format to compute in.
        device: where to.

    Returns:
        A stand-in for the network.
    """
    kept = stored_dtype(checkpoint, part)  # 16 bits, until they are rounded, layer by layer

    def load() -> nn.Module:
        network = deepcopy(empty)
        load_component(network, checkpoint, part, dtype=kept, copied=True)
        network.requires_grad_(False).eval()
        if isinstance(network, UNet):
            prepare(network, quantized="int8-weights")
        else:
            keep_in_eight_bits(network)
        return network.to(device, dtype)

    return OnDemand(type(empty), load, room, layout=cast(Any, empty).layout)
