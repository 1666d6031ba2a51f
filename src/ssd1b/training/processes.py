"""The processes of a training: one, or those that ``torchrun`` started."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssd1b.errors import InputError, UnavailableError
from ssd1b.extras import install
from ssd1b.models.attention import TransformerBlock
from ssd1b.models.layers import ResnetBlock
from ssd1b.training.batches import Batch
from ssd1b.training.settings import LoopSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

Loss = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
"""``loss(model, batch)``: named scalar terms, means over the batch; the one called ``loss`` is minimised."""


class Processes:
    """This process and the others of the run, connected by accelerate.

    Args:
        device: of the model; each of several processes takes its own device of this kind.
        settings: of the run.

    Attributes:
        device: this process's.
        count: number of processes.
        number: this process's, from 0.
        parts: indices of the micro-batches that this process learns from.
        sharded: whether parameters are divided among the processes.

    Raises:
        InputError: accelerate is missing, or the micro-batches cannot be divided evenly.
    """

    def __init__(self, device: torch.device, settings: LoopSettings) -> None:
        self._accelerator = accelerator(device.type, timeout_minutes=settings.timeout_minutes)
        self.count = self._accelerator.num_processes
        self.device = self._accelerator.device if self.count > 1 else device
        self.number = self._accelerator.process_index
        check_shares(settings, self.count)
        each = settings.micro_batches // self.count
        self.parts = range(self.number * each, (self.number + 1) * each)
        self.sharded = settings.fsdp and self.count > 1
        self._timeout = timedelta(minutes=settings.timeout_minutes)
        self._gloo: Any = None
        if self.count > 1:  # only gloo can name a process that does not answer
            self._gloo = torch.distributed.new_group(backend="gloo", timeout=self._timeout)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.number == 0

    def distribute(self, model: nn.Module, average: nn.Module, loss: Loss[Batch]) -> nn.Module:
        """Distribute a model's training over the processes: gradients are averaged, or sharded as well.

        Args:
            model: on this process's device.
            average: of the model's parameters, or the model itself.
            loss: see ``Learner``.

        Returns:
            A module that takes a batch and returns the loss's terms.
        """
        loss_module = LossModule(model, loss)
        if self.sharded:
            for module in (loss_module,) if average is model else (loss_module, average):
                _shard(module, self.device)
            return loss_module
        return self._accelerator.prepare(loss_module) if self.count > 1 else loss_module

    def no_sync(self, loss_module: nn.Module) -> AbstractContextManager[Any]:
        """Skip gradient synchronisation, for all micro-batches but the last."""
        return self._accelerator.no_sync(loss_module)

    def barrier(self) -> None:
        """Wait for the other processes.

        Raises:
            RuntimeError: some did not answer in time; the message names them.
        """
        if self._gloo is not None:
            torch.distributed.monitored_barrier(self._gloo, self._timeout, wait_all_ranks=True)

    def mean(self, values: Sequence[Tensor | float]) -> list[float]:
        """Return the means of numbers over the processes."""
        each = torch.stack([torch.as_tensor(value, device=self.device).detach().float() for value in values])
        return self._accelerator.reduce(each, reduction="mean").tolist()  # type: ignore[union-attr]

    def wait(self) -> None:
        """Wait until the first process has written."""
        self._accelerator.wait_for_everyone()


def check_shares(settings: LoopSettings, count: int) -> None:
    """Check that the micro-batches can be divided evenly among the processes.

    Raises:
        InputError: they cannot.
    """
    if settings.micro_batches % count:
        raise InputError(
            f"{count} processes cannot share {settings.micro_batches} micro_batches evenly: "
            f"set micro_batches to a multiple of {count}"
        )


def accelerator(device: str, *, timeout_minutes: float = 30.0) -> "Accelerator":
    """Join the processes that ``torchrun`` started, if any; afterwards "cuda" is this process's own GPU.

    Raises:
        InputError: accelerate is missing.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError as error:
        raise UnavailableError(f"training needs accelerate: {install(['accelerate'])}") from error
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # precision.py
        kwargs_handlers=[
            # SDXL does not use the last layer of its first text encoder.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes)),
        ],
    )


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered if it is sharded; every process must call this."""
    # torch.distributed.tensor, where DTensor is, takes two seconds to import.
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a full tensor, if ``like`` is sharded."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    held: Any = like
    return distribute_tensor(tensor.to(like.device), held.device_mesh, held.placements, src_data_rank=None)


class LossModule(nn.Module):
    """A model with its loss as one module, so that wrappers see every use of the parameters."""

    def __init__(self, model: nn.Module, loss: Loss[Any]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the loss's terms for a batch."""
        return self._loss(self.model, batch)


def _shard(module: nn.Module, device: torch.device) -> None:
    """Shard every parameter among the processes (FSDP2); a block is gathered only while it runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (int(os.environ["WORLD_SIZE"]),))
    blocks = [each for each in module.modules() if isinstance(each, TransformerBlock | ResnetBlock)]
    for each in (*blocks, module):
        fully_shard(each, mesh=mesh)
