"""The actors: processes of the cluster that each keep a model loaded."""

import re
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib.metadata import version
from typing import Any, NamedTuple, TypeAlias

from ssd1b.cluster.connection import Share
from ssd1b.cluster.options import LOCAL, ClusterOptions
from ssd1b.errors import ConflictError, FailedError, InputError, UnavailableError, line, prefix_errors
from ssd1b.jobs.executor import Render, Result
from ssd1b.jobs.session import CancelledError
from ssd1b.numerals import counted
from ssd1b.pipeline import ignore
from ssd1b.runtime import choose_device, choose_dtype, dtype_name
from ssd1b.settings import GenerationSettings

Open: TypeAlias = Callable[[], AbstractContextManager[Render[Result]]]
"""Loads a model for the duration of the context. It is pickled, and called on the actor's node."""


class Platform(NamedTuple):
    """Where images are generated. It is part of a job's key.

    Attributes:
        device: device type.
        dtype: number format.
    """

    device: str
    dtype: str


def choose_platform(device: str | None, dtype: str | None) -> Platform:
    """Choose what this machine generates on; see ``choose_device`` and ``choose_dtype``.

    Raises:
        InputError: no such device or number format.
    """
    chosen = choose_device(device)
    return Platform(chosen.type, dtype_name(choose_dtype(dtype, chosen)))


def check_local(options: ClusterOptions, choose: Callable[[], Platform]) -> None:
    """Check for a local cluster, before it is started, that this machine has what its actors need.

    Raises:
        InputError: it lacks the device, or a GPU.
    """
    if options.address == LOCAL:
        choose()
        if options.gpus and choose_device(None).type in ("cpu", "mps"):  # Ray counts no GPU of MPS
            raise UnavailableError(
                f"an actor needs {counted(options.gpus, 'GPU')}, and this machine has none"
            )


class Actor:
    """A process of the cluster with a loaded model.

    Attributes:
        node: the node's name in messages.
    """

    def __init__(self) -> None:
        self.node = f"node {socket.gethostname()}"
        self._stack = ExitStack()
        self._render: Render[Any] | None = None

    def platform(self, driver: str, choose: Callable[[], Platform]) -> Platform:
        """Return what this node generates on.

        Args:
            driver: version of this package on the driver's machine.
            choose: chooses the device and the number format.

        Raises:
            InputError: this node has another version, or lacks the device.
        """
        with prefix_errors(self.node):
            if (own := version("ssd1b")) != driver:
                raise ConflictError(f"ssd1b {own} is installed, and {driver} on this machine")
            return choose()

    def load(self, open_model: Open[Any]) -> None:
        """Load a model. The one before it is unloaded first.

        Raises:
            InputError: there is no such model here, it is damaged, or its files differ from the driver's.
        """
        self._render = None  # it holds the model, and there may be no room for two
        self._stack.close()
        with prefix_errors(self.node):
            self._render = self._stack.enter_context(open_model())

    def generate(self, batch: Sequence[GenerationSettings]) -> list[Any]:
        """Generate a batch with the loaded model."""
        assert self._render is not None, "load comes first"
        return self._render(batch, ignore)


def start(kind: type[Actor], share: Share, **options: Any) -> Any:
    """Start an actor, as soon as the cluster has room for it, and return its handle.

    Ray sets ``OMP_NUM_THREADS`` by the CPUs, and with it the number of torch's threads.

    Args:
        kind: its class.
        share: what it reserves.
        **options: further ones of ``ray.remote``.
    """
    import ray

    remote: Any = ray.remote
    return remote(num_cpus=share.cpus, num_gpus=share.gpus, **options)(kind).remote()


def error_of(error: BaseException) -> Exception | None:
    """Return the error that our own code raised in an actor; None if the actor ended."""
    from ray.exceptions import RayTaskError

    if not isinstance(error, RayTaskError):
        return None
    cause = error.cause
    return cause if isinstance(cause, InputError | CancelledError) else FailedError(line(str(cause)))


class LowMemoryError(UnavailableError):
    """Ray ended an actor because its node had too little memory."""


def end_of(error: BaseException) -> UnavailableError:
    """Return the error for an actor that ended, from that of Ray."""
    from ray.exceptions import OutOfMemoryError

    if not isinstance(error, OutOfMemoryError):
        return UnavailableError(reason_of(str(error)))
    used = re.search(r"was ([0-9.]+ ?[KMGT]?B) used / ([0-9.]+ ?[KMGT]?B)", str(error))
    figures = f" ({used[1]} of {used[2]} used)" if used else ""
    what = f"the actor's node is short of memory{figures}"
    return LowMemoryError(f"{what}; fewer actors need less, see --ray-actors")


def reason_of(text: str) -> str:
    """Return the sentence of Ray's message that says what happened, between ids and general advice."""
    lines = [each.strip() for each in text.splitlines() if each.strip()]
    return line(lines[-1].partition(". ")[0]).rstrip(".") if lines else "the actor ended"
