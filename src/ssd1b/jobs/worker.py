"""A process that keeps one model loaded and generates batches with it.

The process isolates the caller from the model: its memory is returned when the process ends, a crash is an
error of one batch, and the caller's Python code does not compete with the model's for the interpreter.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any, Protocol, runtime_checkable

from ssd1b.errors import UnavailableError, shown
from ssd1b.jobs.executor import JobResult
from ssd1b.jobs.session import Progress, Session
from ssd1b.settings import GenerationSettings


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that a worker generates.

    Attributes:
        number: see ``Progress.batch``.
        result: an outcome and a file for each image, in order. It raises ``CancelledError`` if the batch was
            cancelled, and ``UnavailableError`` if the process ended.
    """

    number: int
    result: Future[list[JobResult]]


@runtime_checkable
class ModelWorker(Protocol):
    """A process with one loaded model, on this machine or another one; see ``Worker`` for the methods.

    The future of ``load`` gives 0 for a process on another machine.
    """

    @property
    def is_alive(self) -> bool: ...  # noqa: D102

    def load(self) -> "Future[int]": ...  # noqa: D102

    def submit(self, batch: Sequence[GenerationSettings]) -> Batch: ...  # noqa: D102

    def cancel(self, batch: Batch) -> None: ...  # noqa: D102

    def show_previews(self, wanted: bool) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class Worker:
    """A process with one loaded model.

    The process starts, and loads the model, when the first work is submitted.

    Args:
        model: the model's name.
        options: keyword arguments of ``Pipeline.load``; they are pickled.
        report: called from another thread with the progress of each batch.
    """

    def __init__(self, model: str, options: Mapping[str, Any], report: Callable[[Progress], object]) -> None:
        context = get_context("spawn")
        self.model = model
        self._receiver, self._sender = context.Pipe(duplex=False)
        self._cancelled, self._previewed = context.Value("Q", 0), context.Event()
        self._pool = ProcessPoolExecutor(1, context, _start, (self._sender, self._cancelled, self._previewed))
        self._options = dict(options)
        self._report = report
        self._batches = 0
        self._ended_early = False
        threading.Thread(target=self._listen, name=f"progress of {model}", daemon=True).start()

    def load(self) -> "Future[int]":
        """Load the model; the future gives the process's id.

        It raises InputError if there is no such model or its files are damaged.
        """
        return self._submit(_load, self.model, self._options)

    def submit(self, batch: Sequence[GenerationSettings]) -> Batch:
        """Generate a batch after those submitted before it.

        Args:
            batch: the settings of each image; their batch keys must be equal.
        """
        self._batches += 1
        return Batch(self._batches, self._submit(_generate, self._batches, list(batch)))

    def cancel(self, batch: Batch) -> None:
        """Stop a batch, and those before it, after the step that is being computed."""
        self._cancelled.value = max(self._cancelled.value, batch.number)

    @property
    def is_alive(self) -> bool:
        """Whether the process can take work: it has not ended and was not closed."""
        return not self._ended_early

    def show_previews(self, wanted: bool) -> None:
        """Turn previews on or off, also for the current batch."""
        if wanted:
            self._previewed.set()
        else:
            self._previewed.clear()

    def close(self) -> None:
        """End the process at once, whatever it is doing."""
        self._ended_early = True
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
            process.join()
        self._sender.close()

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        outer: Future[Any] = Future()
        outer.set_running_or_notify_cancel()

        def finish(inner: "Future[Any]") -> None:
            if inner.cancelled():
                outer.set_exception(self._ended())
            elif isinstance(error := inner.exception(), BrokenProcessPool):
                outer.set_exception(self._ended())
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(inner.result())

        try:
            self._pool.submit(work, *arguments).add_done_callback(finish)
        except RuntimeError:  # the process ended before, or was closed
            outer.set_exception(self._ended())
        return outer

    def _ended(self) -> UnavailableError:
        self._ended_early = True
        return UnavailableError(f"the process of the model {shown(self.model)} ended unexpectedly")

    def _listen(self) -> None:
        while True:
            try:
                self._report(self._receiver.recv())
            except (EOFError, OSError):
                return


# What follows runs in the worker's process.

_channel: Connection
_cancelled: "Synchronized[int]"
_previewed: Event
_session: Session


def _start(channel: Connection, cancelled: "Synchronized[int]", previewed: Event) -> None:
    import signal

    global _channel, _cancelled, _previewed
    _channel, _cancelled, _previewed = channel, cancelled, previewed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """End this process when its parent ends, whatever it is computing."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _load(model: str, options: Mapping[str, Any]) -> int:
    global _session
    _session = Session(
        model, options, report=_channel.send, cancelled=lambda: _cancelled.value, previewed=_previewed.is_set
    )
    return os.getpid()


def _generate(number: int, batch: Sequence[GenerationSettings]) -> list[JobResult]:
    return _session.generate(number, batch)
