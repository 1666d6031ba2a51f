"""Networks that are in memory one at a time."""

from collections.abc import Callable
from typing import Any

from torch import nn


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
