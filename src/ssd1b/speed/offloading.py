"""Low-memory execution: networks that are in memory one at a time."""

from collections.abc import Callable
from typing import Any

from torch import nn


class ModelSlot:
    """Memory for one network; loading another frees it."""

    def __init__(self) -> None:
        self.owner: LazyNetwork | None = None
        self.network: nn.Module | None = None

    def load(self, owner: "LazyNetwork", read: Callable[[], nn.Module]) -> nn.Module:
        """Return the owner's network, which ``read`` loads if it is not in memory."""
        if self.owner is not owner or self.network is None:
            self.owner, self.network = None, None  # freed before the next one is loaded
            self.network = read()
            self.owner = owner
        return self.network


class LazyNetwork:
    """A proxy for a network that is loaded on use, and again after another network took its place.

    It passes ``isinstance`` checks for the network's class and forwards all attributes to the network. Only
    the attributes in ``known`` are available without loading it.
    """

    def __init__(
        self, kind: type[nn.Module], read: Callable[[], nn.Module], slot: ModelSlot, **known: Any
    ) -> None:
        self._kind, self._read, self._slot = kind, read, slot
        self.__dict__ |= known

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """For ``isinstance``."""
        return self._kind

    def read_with(self, read: Callable[[], nn.Module]) -> None:
        """Load the network in another way from now on."""
        self._read = read
        if self._slot.owner is self:
            self._slot.owner, self._slot.network = None, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slot.load(self, self._read), name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the network."""
        return self._slot.load(self, self._read)(*args, **named)
