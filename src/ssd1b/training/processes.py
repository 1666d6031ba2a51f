"""The processes that train together: one, or as many as ``torchrun`` started."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssd1b.errors import InputError
from ssd1b.models.attention import TransformerBlock
from ssd1b.models.layers import ResnetBlock
from ssd1b.training.batches import Batch
from ssd1b.training.settings import LoopSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

Loss = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
"""``loss(model, batch)``: named scalar terms, means over the batch; the one called ``loss`` is minimised."""


class Processes:
    """This process and its like, brought together by accelerate.

    Args:
        device: on which the model is; of several processes each takes its own of this kind.
        settings: of the run.

    Attributes:
        device: to train on.
        count: how many processes there are.
        number: this one's, from 0.
        parts: numbers of the micro-batches that this process learns from.

    Raises:
        InputError: accelerate is missing, or the micro-batches cannot be shared out evenly.
    """

    def __init__(self, device: torch.device, settings: LoopSettings) -> None:
        self._accelerator = accelerator(device.type, timeout_minutes=settings.timeout_minutes)
        self.count = self._accelerator.num_processes
        self.device = self._accelerator.device if self.count > 1 else device
        self.number = self._accelerator.process_index
        check_shares(settings, self.count)
        each = settings.micro_batches // self.count
        self.parts = range(self.number * each, (self.number + 1) * each)
        self._timeout = timedelta(minutes=settings.timeout_minutes)
        self._gloo: Any = None
        if self.count > 1:  # the only backend that can tell who does not answer
            self._gloo = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
        self._sharded = settings.fsdp and self.count > 1
        self._whole: nn.Module | None = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.number == 0

    def share_out(self, model: nn.Module, average: nn.Module, loss: Loss) -> nn.Module:
        """Spread the training of ``model`` over the processes: gradients are averaged, or sharded too.

        Returns:
            ``model`` and its loss as one module, so that the processes hear of every use of the weights.
        """
        asked = _Asked(model, loss)
        if self._sharded:
            self._whole = copy.deepcopy(model).cpu()
            for module in (asked,) if average is model else (asked, average):
                _shard(module, self.device)
            return asked
        return self._accelerator.prepare(asked) if self.count > 1 else asked

    def gathered(self, module: nn.Module) -> nn.Module:
        """The whole of a module that was shared out, on the CPU; any other as it is."""
        if self._whole is None:
            return module
        self._whole.load_state_dict({name: whole(tensor) for name, tensor in module.state_dict().items()})
        return self._whole

    def unsynchronised(self, asked: nn.Module) -> AbstractContextManager[Any]:
        """Gradients of all parts but the last are kept to oneself."""
        return self._accelerator.no_sync(asked)

    def meet(self) -> None:
        """Wait for the others.

        Raises:
            RuntimeError: some did not come in time; names them.
        """
        if self._gloo is not None:
            torch.distributed.monitored_barrier(self._gloo, self._timeout, wait_all_ranks=True)

    def mean(self, values: Sequence[Tensor | float]) -> list[float]:
        """Means of numbers over the processes."""
        each = torch.stack([torch.as_tensor(value, device=self.device).detach().float() for value in values])
        return self._accelerator.reduce(each, reduction="mean").tolist()  # type: ignore[union-attr]

    def wait(self) -> None:
        """Let the first one finish writing."""
        self._accelerator.wait_for_everyone()


def check_shares(settings: LoopSettings, count: int) -> None:
    """See that so many processes can share the micro-batches evenly; also before the data are read.

    Raises:
        InputError: they cannot.
    """
    if settings.micro_batches % count:
        raise InputError(
            f"{count} processes cannot share {settings.micro_batches} micro_batches evenly: "
            f"set micro_batches to a multiple of {count}"
        )


def accelerator(device: str, *, timeout_minutes: float = 30.0) -> "Accelerator":
    """Join the processes that ``torchrun`` started, if it did; from then on "cuda" is this process's own GPU.

    Raises:
        InputError: accelerate is missing.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError as error:
        raise InputError("training needs accelerate: pip install 'ssd1b[train]'") from error
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # precision.py
        kwargs_handlers=[
            # Of a text encoder, SDXL leaves the last layer unused.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes)),
        ],
    )


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, also of one of which each process holds a part; every process must ask."""
    # torch.distributed.tensor, where DTensor is, takes two seconds to import.
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where ``like`` is held in parts."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    held: Any = like
    return distribute_tensor(tensor.to(like.device), held.device_mesh, held.placements, src_data_rank=None)


class _Asked(nn.Module):
    """A model and what it is asked."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._loss(self.model, batch)


def _shard(module: nn.Module, device: torch.device) -> None:
    """Give each process a part of every weight (FSDP2); blocks are whole only while they compute."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (int(os.environ["WORLD_SIZE"]),))
    blocks = [each for each in module.modules() if isinstance(each, TransformerBlock | ResnetBlock)]
    for each in (*blocks, module):
        fully_shard(each, mesh=mesh)
