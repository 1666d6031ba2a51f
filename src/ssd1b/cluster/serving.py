"""Replicas for a server: actors that keep a model loaded, report progress and can be cancelled.

To the server a replica is a worker like its own processes: the queue, the batches and the store stay with it.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import Any

from ssd1b.cluster.actor import Actor, LowMemoryError, Platform, end_of, error_of, start
from ssd1b.cluster.connection import Share
from ssd1b.errors import UnavailableError, prefix_errors, shown
from ssd1b.jobs.executor import JobResult
from ssd1b.jobs.session import Progress, Session
from ssd1b.jobs.worker import Batch
from ssd1b.settings import GenerationSettings

_GROUPS = {"control": 1, "progress": 1}
"""Threads of an actor besides the one that generates."""

_LONGEST_WAIT = 5.0
"""Seconds that a call for progress waits in the actor."""


class Replica(Actor):
    """The actor: as those of sweeps, with progress, previews and cancellation."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: queue.SimpleQueue[Progress] = queue.SimpleQueue()
        self._cancelled = 0
        self._previewed = False

    def begin(
        self, driver: str, choose: Callable[[], Platform], model: str, options: Mapping[str, Any]
    ) -> None:
        """Load a model, after the checks of ``platform``.

        Raises:
            InputError: as ``platform``, or the model cannot be loaded.
        """
        self.platform(driver, choose)
        with prefix_errors(self.node):
            self._session = Session(
                model, options, report=self._progress.put, cancelled=lambda: self._cancelled,
                previewed=lambda: self._previewed,
            )  # fmt: skip

    def draw(self, number: int, batch: Sequence[GenerationSettings]) -> list[JobResult]:
        """Generate a batch; see ``Session.generate``."""
        return self._session.generate(number, batch)

    def cancel(self, number: int) -> None:
        """Cancel a batch and those before it."""
        self._cancelled = max(self._cancelled, number)

    def show_previews(self, wanted: bool) -> None:
        """Turn previews on or off."""
        self._previewed = wanted

    def progress(self) -> list[Progress]:
        """Wait for progress, and return what there is; nothing after a while without any."""
        try:
            found = [self._progress.get(timeout=_LONGEST_WAIT)]
        except queue.Empty:
            return []
        while not self._progress.empty():
            found.append(self._progress.get())
        return found


def probe(share: Share, choose: Callable[[], Platform]) -> Platform:
    """Start an actor, and return what it generates on.

    Raises:
        InputError: as ``Actor.platform``, or the actor ended.
    """
    import ray
    from ray.exceptions import RayError

    actor = start(Actor, share)
    try:
        return ray.get(actor.platform.remote(version("ssd1b"), choose))
    except RayError as error:
        raise error_of(error) or UnavailableError(
            f"an actor ended while it started: {end_of(error)}"
        ) from None
    finally:
        ray.kill(actor)


class ClusterWorker:
    """A replica, as a ``jobs.worker.ModelWorker`` of the server.

    The actor starts, and loads the model, with ``load``.

    Args:
        share: what the actor reserves.
        choose: see ``Actor.platform``.
        model: the model's name.
        options: keyword arguments of ``Pipeline.load``.
        report: called from another thread with the progress of each batch.
    """

    def __init__(
        self,
        share: Share,
        choose: Callable[[], Platform],
        model: str,
        options: Mapping[str, Any],
        report: Callable[[Progress], object],
    ) -> None:
        self.model = model
        self._choose, self._options, self._report = choose, dict(options), report
        self._batches = 0
        self._ended = False
        self._handle = start(Replica, share, concurrency_groups=_GROUPS)

    @property
    def is_alive(self) -> bool:
        """Whether the actor can take work: it has not ended and was not closed."""
        return not self._ended

    def load(self) -> "Future[int]":
        """Load the model; the future gives 0, because the process is on another machine.

        It raises InputError if the model cannot be loaded, or the node does not fit.
        """
        threading.Thread(target=self._listen, name=f"progress of {self.model}", daemon=True).start()
        begun = self._handle.begin.remote(version("ssd1b"), self._choose, self.model, self._options)
        return self._future(begun, lambda nothing: 0)

    def submit(self, batch: Sequence[GenerationSettings]) -> Batch:
        """Generate a batch after those submitted before it."""
        self._batches += 1
        return Batch(self._batches, self._future(self._handle.draw.remote(self._batches, list(batch))))

    def cancel(self, batch: Batch) -> None:
        """Stop a batch, and those before it, after the step that is being computed."""
        self._control(self._handle.cancel, batch.number)

    def show_previews(self, wanted: bool) -> None:
        """Turn previews on or off, also for the current batch."""
        self._control(self._handle.show_previews, wanted)

    def close(self) -> None:
        """End the actor at once, whatever it is doing."""
        import ray

        self._ended = True
        with suppress(Exception):  # Ray was shut down before
            ray.kill(self._handle)

    def _control(self, method: Any, argument: object) -> None:
        method.options(concurrency_group="control").remote(argument)

    def _future(self, reference: Any, read: Callable[[Any], Any] = lambda value: value) -> "Future[Any]":
        outer: Future[Any] = Future()
        outer.set_running_or_notify_cancel()
        reference.future().add_done_callback(partial(self._finish, outer, read))
        return outer

    def _finish(self, outer: "Future[Any]", read: Callable[[Any], Any], inner: "Future[Any]") -> None:
        error = inner.exception()
        if error is None:
            outer.set_result(read(inner.result()))
            return
        found = error_of(error)
        if found is None:
            self._ended = True
            reason = end_of(error)
            why = f"because {reason}" if isinstance(reason, LowMemoryError) else "unexpectedly"
            found = UnavailableError(f"the process of the model {shown(self.model)} ended {why}")
        outer.set_exception(found)

    def _listen(self) -> None:
        import ray

        while not self._ended:
            try:
                reference = self._handle.progress.options(concurrency_group="progress").remote()
                for each in ray.get(reference):
                    self._report(each)
            except Exception:  # the actor ended; if it generates, the batch's future says so, too
                self._ended = True
