"""Merging and taking off a loaded model's adapters between two batches."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ssd1b.loras import Lora
from ssd1b.model import Model
from ssd1b.speed.backends import Backend


@dataclass(slots=True, kw_only=True)
class Adapting:
    """The networks of a loaded model, and the adapters that are merged into them.

    Attributes:
        model: the model without adapters.
        backend: prepared the networks.
        networks: by their names in ``keymap.PARTS``; only those that adapters change are needed.
        loras: the adapters that are merged; None after an error, until the next call of ``use``.
    """

    model: Model
    backend: Backend
    networks: dict[str, Any]
    loras: tuple[Lora, ...] | None = ()
    _merged: dict[str, Hashable] = field(default_factory=dict)
    _names: dict[str, set[str]] = field(default_factory=dict)

    def use(self, loras: Iterable[Lora]) -> None:
        """Merge these adapters instead of the present ones.

        Only tensors that are changed, now or by the present adapters, are read again, from the original
        weights. So the networks without adapters are the same in every bit as before.

        Raises:
            InputError: a file has changed, is no adapter, does not fit the model, or holds NaN or infinity.
        """
        wanted = tuple(loras)
        if wanted == self.loras:
            return
        model = self.model.with_loras(wanted)
        changes = model.changes  # before anything is changed
        self.loras = None
        for part, network in self.networks.items():
            merged = tuple(
                (each.file, each.config, strength)
                for each in wanted
                if (strength := each.unet if part == "unet" else each.text)
            )
            present = self._names.get(part, set[str]())
            names = present | changes[part].keys()
            if names and merged != self._merged.get(part, ()):
                # If an error follows, the next call finds all of these.
                self._merged[part], self._names[part] = None, names
                self.backend.adapt(model, part, network, names)
                self._names[part] = set(changes[part])
            self._merged[part] = merged
        self.loras = wanted
