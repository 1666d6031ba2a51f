"""How use cases find and load models, and how they report progress."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ssd1b.cluster.options import ClusterOptions
from ssd1b.errors import UnavailableError
from ssd1b.execution import DEFAULT, Execution
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline, reads_half
from ssd1b.recipe import NetworkFile
from ssd1b.runtime import choose_device, choose_dtype
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.threads import Threads

Notify: TypeAlias = Callable[[str], None]
"""Called with a message before a step that takes long."""

Progress: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[int], object]]]
"""``progress(label, total)`` shows a task while its context lasts, and yields a function that advances it.
The total is None if it is not known."""


@contextmanager
def silent(label: str, total: int | None) -> Generator[Callable[[int], object], None, None]:
    """Show no progress."""
    yield lambda amount: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Options for finding and loading models; see ``Pipeline.load`` for each of them.

    Attributes:
        device: None for the fastest one.
        dtype: number format; None for what the device is fast at.
        offline: never use the network.
        prediction: what the UNet predicts, if the model's files do not say.
        token: send the user's token to the hub.
        paths: a model's name may be a path.
        networks: files with networks that replace the model's own.
        execution: backend, compilation, quantization, memory.
        threads: number of CPU threads, or "auto".
        notify: called with a message before steps that take minutes.
        cluster: the cluster that generates; None for this machine. Only sweeps, tuning, the guide, bulk
            generation and evaluations use one.
    """

    device: str | None = None
    dtype: str | None = None
    offline: bool = False
    prediction: str | None = None
    token: bool = True
    paths: bool = True
    networks: tuple[NetworkFile, ...] = ()
    execution: Execution = DEFAULT
    threads: Threads = "auto"
    notify: Notify = lambda message: None
    cluster: ClusterOptions | None = None

    def load(self, model: str | Model = DEFAULT_MODEL) -> Pipeline:
        """Load a model, by name or as ``find`` found it.

        Raises:
            InputError: as ``Pipeline.load``.
        """
        return Pipeline.load(
            model, device=self.device, dtype=self.dtype, offline=self.offline, prediction=self.prediction,
            token=self.token, paths=self.paths, networks=self.networks, execution=self.execution,
            threads=self.threads, notify=self.notify,
        )  # fmt: skip

    def find(self, model: str = DEFAULT_MODEL, dtype: torch.dtype | None = None) -> Model:
        """Find a model, without reading its weights: the files that ``load`` would read.

        Args:
            model: its name.
            dtype: the number format that it would be loaded in; None is that of this machine.

        Raises:
            InputError: there is no such model.
        """
        dtype = dtype or choose_dtype(self.dtype, choose_device(self.device))
        return Model.find(
            model, offline=self.offline, half=reads_half(self.execution, dtype), prediction=self.prediction,
            token=self.token, paths=self.paths, networks=self.networks,
        )  # fmt: skip


def check_model(name: str) -> None:
    """Check that there is a model, as far as that is known without the network and its weights.

    Raises:
        InputError: there is none, or it is damaged.
    """
    with suppress(UnavailableError):  # it is not downloaded yet
        _ = Model.find(name, offline=True, half=True).layout


AUTO = Loading()
"""The fastest device, and the number format it is fast at."""
