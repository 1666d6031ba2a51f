"""The data of a training, as the loop asks for them, and how they are shared out."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from ssd1b.errors import InputError

Batch: TypeAlias = dict[str, Any]
"""What one step learns from: tensors, also in lists, tuples and dicts, whose first axis is the batch's."""


@runtime_checkable
class Batches(Protocol):
    """The batch of each step, a pure function of the step's number."""

    def __getitem__(self, step: int) -> Batch: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one process learns of each batch: some of its parts.

    Attributes:
        batches: the whole.
        parts: numbers of this process's parts.
        count: how many parts there are for all processes.
    """

    batches: Batches
    parts: range
    count: int

    def __getitem__(self, step: int) -> list[Batch]:
        """The parts of a step's batch."""
        if self.count == 1:
            return [self.batches[step]]
        whole = self.batches[step]
        return [cut(whole, index, self.count) for index in self.parts]


def cut(batch: Batch, index: int, count: int) -> Batch:
    """Take the ``index``-th of ``count`` equal parts of every tensor.

    Raises:
        InputError: a tensor does not come apart evenly.
    """
    from accelerate.utils import recursively_apply

    def part(tensor: Tensor) -> Tensor:
        if len(tensor) % count:
            raise InputError(f"a batch of {len(tensor)} does not come apart in {count} equal micro_batches")
        return tensor.chunk(count)[index]

    parts: Any = recursively_apply(part, batch)
    return parts
