"""Callbacks and backends for Ray Train. Imported late, because it imports Ray Train."""

import os
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.v2.api.callback import UserCallback

from ssd1b.cluster.actor import reason_of
from ssd1b.errors import FailedError, InputError, LostProcessError, line

MAX_FAILURES = 3
"""Failures in a row, with nothing saved in between, that end a training."""


class Failures(UserCallback):
    """Decides whether a training goes on after processes failed.

    Args:
        saved: see ``training.train``.
        tell: called with a line for the user.
    """

    def __init__(self, saved: Callable[[], object], tell: Callable[[str], object]) -> None:
        self._saved, self._tell = saved, tell
        self._count, self._last = 0, None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell the reason, if the training goes on.

        Raises:
            InputError: a process raised it; or there were too many failures with nothing saved in between.
        """
        ours = [error for error in worker_exceptions.values() if isinstance(error, InputError)]
        for error in ours:
            if not isinstance(error, LostProcessError):
                raise error
        # Processes that lost another one say less than the one that failed.
        causes = [error for error in worker_exceptions.values() if error not in ours] or ours
        reason = _reason(causes[0])
        now = self._saved()
        self._count = self._count + 1 if now == self._last else 1
        self._last = now
        if self._count == MAX_FAILURES:
            raise FailedError(f"the training failed {MAX_FAILURES} times without a new checkpoint: {reason}")
        self._tell(f"continuing from the last checkpoint, after a process ended: {reason}\n")


def _reason(error: Exception) -> str:
    death = getattr(error, "health_check_failure", None)
    if death is not None:
        return reason_of(str(death))
    return line(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")


_TorchBackend: Any = TorchConfig().backend_cls


class LoopbackBackend(_TorchBackend):
    """Connects processes of one machine by torch."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Connect them."""
        worker_group.execute(listen_on_loopback)
        super().on_start(worker_group, backend_config)


class LoopbackConfig(TorchConfig):
    """Options of ``LoopbackBackend``."""

    backend_cls = LoopbackBackend  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]


def listen_on_loopback() -> None:
    """Let torch listen on the loopback only.

    Its store, through which processes find each other, has no such option, but it accepts an open socket.
    """
    # ``torch.distributed.rendezvous`` is a function, too.
    rendezvous = import_module("torch.distributed.rendezvous")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    original = rendezvous.TCPStore

    def store(*, host_name: str, port: int, is_master: bool, **options: Any) -> Any:
        if is_master:
            options["master_listen_fd"] = socket.create_server(("127.0.0.1", port)).detach()
        return original(host_name=host_name, port=port, is_master=is_master, **options)

    rendezvous.TCPStore = store  # type: ignore[attr-defined]
