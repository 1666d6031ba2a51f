"""Training data: the batch of each step, and the share of it that a process learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ssd1b.errors import InputError
from ssd1b.models.text import Conditioning, Tokens

Batch = TypeVar("Batch")
"""The data of one step: tensors whose first axis is the batch, alone or in lists, tuples and dicts."""

AnyBatch = TypeVar("AnyBatch", covariant=True)


class LatentBatch(NamedTuple):
    """Encoded images with their captions, for training a UNet.

    Attributes:
        latents: scaled latents of the images, ``[B, 4, H/8, W/8]``.
        text: the captions' tokens for each text encoder, or their embeddings.
        time_ids: original size, crop and target size in pixels, ``[B, 6]``.
        has_caption: ``[B]``, False where the image is learned without its caption (2207.12598).
        cell_weights: weights of the squared error at each place, ``[B, 1, H/8, W/8]``; None is 1 everywhere.
        controls: what a ControlNet reads, ``[B, 1 or 3, H, W]``, 0 to 255, uint8; 1 if all are grey. None
            without one.
    """

    latents: Tensor
    text: Sequence[Tokens] | Conditioning
    time_ids: Tensor
    has_caption: Tensor
    cell_weights: Tensor | None = None
    controls: Tensor | None = None


def control_levels(controls: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Return control images as a ControlNet takes them: ``[B, 3, H, W]``, 0 to 1.

    Args:
        controls: see ``LatentBatch``.
        device: of the ControlNet.
        dtype: in which it computes.
    """
    return (controls.to(device).float() / 255).to(dtype).expand(-1, 3, -1, -1)


@runtime_checkable
class Batches(Protocol[AnyBatch]):
    """The batch of each step, a pure function of the step's number."""

    def __getitem__(self, step: int) -> AnyBatch: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Share(Generic[Batch]):
    """The micro-batches of each step that one process learns from.

    Attributes:
        batches: the batches of all processes.
        parts: indices of this process's micro-batches.
        count: number of micro-batches in a batch.
    """

    batches: Batches[Batch]
    parts: range
    count: int

    def __getitem__(self, step: int) -> list[Batch]:
        """Return this process's micro-batches of a step."""
        batch = self.batches[step]
        return [batch] if self.count == 1 else [cut(batch, index, self.count) for index in self.parts]


def cut(batch: Batch, index: int, count: int) -> Batch:
    """Take the ``index``-th of ``count`` equal parts of every tensor in a batch.

    Raises:
        InputError: the first axis of a tensor is not a multiple of ``count``.
    """
    from accelerate.utils import recursively_apply

    def part(tensor: Tensor) -> Tensor:
        if len(tensor) % count:
            raise InputError(f"a batch of {len(tensor)} cannot be divided into {count} equal micro_batches")
        return tensor.chunk(count)[index]

    parts: Any = recursively_apply(part, batch)
    return parts
