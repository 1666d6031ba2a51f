"""The processes of a training: one, or those that ``torchrun`` or Ray Train started on one or more machines.

The first process decides and writes, and the others learn from it what to do. They do not look for
themselves, because a network disk may show a new file to other machines only after a minute.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ssd1b.errors import ConflictError, InputError, LostProcessError, NotFoundError, UnavailableError, line
from ssd1b.extras import install
from ssd1b.files import named
from ssd1b.models.attention import TransformerBlock
from ssd1b.models.layers import ResnetBlock
from ssd1b.saving import temporary_path
from ssd1b.training.batches import Batch
from ssd1b.training.settings import LoopSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

Loss = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
"""``loss(model, batch)``: named scalar terms, means over the batch; the one called ``loss`` is minimised."""

T = TypeVar("T")

VISIBLE_SECONDS = 90.0
"""How long to look for a file that another machine wrote: NFS clients remember for a minute what a folder
contains."""


class Group:
    """The processes of a run, and what they agree on between their training steps.

    Args:
        device: type of device; each process takes its own device of this type.
        step_minutes: how long processes wait for each other within a training step.
        wait_minutes: how long they wait here.

    Attributes:
        count: number of processes.
        number: this process's, from 0.

    Raises:
        InputError: accelerate is missing.
    """

    def __init__(self, device: str, *, step_minutes: float, wait_minutes: float) -> None:
        self._accelerator = accelerator(device, timeout_minutes=step_minutes)
        self.count = self._accelerator.num_processes
        self.number = self._accelerator.process_index
        self._timeout = timedelta(minutes=wait_minutes)
        self._gloo: Any = None
        if self.count > 1:  # only gloo can name a process that does not answer
            self._gloo = torch.distributed.new_group(backend="gloo", timeout=self._timeout)

    @property
    def first(self) -> bool:
        """Whether this process is the one that decides and writes."""
        return self.number == 0

    def decide(self, find: Callable[[], T]) -> T:
        """Call a function in the first process; all return its result, or raise its InputError."""
        if self._gloo is None:
            return find()
        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = find()
            except InputError as error:
                found[1] = error
        torch.distributed.broadcast_object_list(found, src=0, group=self._gloo)
        if found[1] is not None:
            raise found[1]
        return found[0]

    def first_before_others(self, do: Callable[[], T]) -> T:
        """Call a function that fills a cache in the first process, and then in the others."""
        done: list[T] = []
        self.decide(lambda: done.append(do()))
        return done[0] if done else do()

    def gather(self, mine: T) -> list[T]:
        """Return what each process gives, in the order of their numbers."""
        if self._gloo is None:
            return [mine]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, mine, group=self._gloo)
        return found

    def check_same(self, what: str, find: Callable[[], object]) -> None:
        """Check that a function gives the same in all processes; one alone does not call it.

        Raises:
            InputError: some machines give something else than that of the first process.
        """
        if self._gloo is None:
            return
        found = self.gather((find(), socket.gethostname()))
        theirs, machine = found[0]
        if other := sorted({where for each, where in found if each != theirs}):
            raise ConflictError(f"{', '.join(other)}: {what} differs from that on {machine}")

    def check_shared(self, folder: Path) -> None:
        """Check that all processes see the same folder.

        Raises:
            InputError: some machines do not see a file that the first process writes there.
        """
        if self._gloo is None:
            return
        name = self.decide(lambda: _touch(folder))
        found = self.gather((is_visible(folder / name), socket.gethostname()))
        self.decide(lambda: (folder / name).unlink(missing_ok=True))
        if blind := sorted({where for seen, where in found if not seen}):
            raise NotFoundError(
                f"{', '.join(blind)}: {named(folder)} is not the folder that the first process writes to, on "
                f"{found[0][1]}: choose one on a disk that all machines share, under the same path"
            )

    def barrier(self) -> None:
        """Wait for the other processes.

        Raises:
            RuntimeError: some did not answer in time; the message names them.
        """
        if self._gloo is not None:
            torch.distributed.monitored_barrier(self._gloo, self._timeout, wait_all_ranks=True)


def _touch(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = temporary_path(folder)
    path.touch()
    return path.name


def is_visible(path: Path) -> bool:
    """Wait until a file is visible that another machine wrote, and return whether it is."""
    end = time.monotonic() + VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


@contextmanager
def report_lost_processes() -> Generator[None, None, None]:
    """Turn the errors of torch, after another process ended or hung, into one line.

    Raises:
        LostProcessError: another process is missing.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.distributed.DistError) and not any(sign in text for sign in _LOST):
            raise
        reason, _, _ = re.sub(r"^\[\S+\] ", "", line(text)).partition(". ")  # not the place in torch's source
        raise LostProcessError(
            f"another process of this training ended or does not answer; continue with --resume ({reason})"
        ) from None


_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "monitoredBarrier", "gloo")
"""In messages of torch's plain RuntimeErrors."""


class Processes(Group):
    """The processes of a run in its training steps, connected by accelerate.

    Args:
        device: of the model; each of several processes takes its own device of this kind.
        settings: of the run.

    Attributes:
        device: this process's.
        parts: indices of the micro-batches that this process learns from.
        sharded: whether parameters are divided among the processes.

    Raises:
        InputError: accelerate is missing, or the micro-batches cannot be divided evenly.
    """

    def __init__(self, device: torch.device, settings: LoopSettings) -> None:
        minutes = settings.timeout_minutes
        super().__init__(device.type, step_minutes=minutes, wait_minutes=minutes)
        self.device = self._accelerator.device if self.count > 1 else device
        check_shares(settings, self.count)
        each = settings.micro_batches // self.count
        self.parts = range(self.number * each, (self.number + 1) * each)
        self.sharded = settings.fsdp and self.count > 1

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

    def mean(self, values: Sequence[Tensor | float]) -> list[float]:
        """Return the means of numbers over the processes."""
        each = torch.stack([torch.as_tensor(value, device=self.device).detach().float() for value in values])
        return self._accelerator.reduce(each, reduction="mean").tolist()  # type: ignore[union-attr]


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
    """Join the other processes of the run, if there are any; afterwards "cuda" is this process's own GPU.

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
