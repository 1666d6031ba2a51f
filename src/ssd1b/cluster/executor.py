"""An executor on a Ray cluster.

The store and its claims stay with the driver, so what is generated once is decided in one place. Actors are
stateless but for the loaded model: when one ends, with its process or its node, its batch goes to another.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any, Generic

from ssd1b.cluster.actor import Actor, LowMemoryError, Open, Platform, end_of, error_of, start
from ssd1b.cluster.connection import Share, divide
from ssd1b.cluster.options import ClusterOptions
from ssd1b.errors import ConflictError, FailedError, InputError, UnavailableError, line
from ssd1b.jobs.executor import LostError, Result
from ssd1b.pipeline import Watch, ignore
from ssd1b.settings import GenerationSettings

MAX_DEATHS = 5
"""Actors that may end while they generate a batch, before the batch is lost."""

MAX_LOST = 3
"""Batches in a row that may be lost before the run ends."""

MAX_FAILED_STARTS = 20
"""Actors that may end while they start before the run does, unless one loads or generates meanwhile."""

MAX_SHORT_OF_MEMORY = 5
"""The same for actors that Ray ends because memory is short, while no other is left."""

GROW_SECONDS = 10.0
"""Interval for looking for nodes that have joined the cluster."""

PATIENCE = 20.0
"""Seconds to wait for the first actor before saying so."""


@dataclass(eq=False, slots=True)
class _Batch:
    settings: list[GenerationSettings]
    result: "Future[list[Any]]" = field(default_factory=Future)
    deaths: int = 0


@dataclass(eq=False, slots=True)
class _Worker:
    """An actor, and its batches: the one that it generates, and the next."""

    handle: Any
    is_ready: bool = False
    batches: list[_Batch] = field(default_factory=list)


class ClusterExecutor(Generic[Result]):
    """Generates batches in the actors of a cluster; see ``Executor``.

    All actors have the same model loaded. When an actor ends, another is started, and generates its batch.

    Args:
        options: of the cluster, to which this process is connected.
        platform: chooses what the models run on; called on each actor's node.
        open_model: returns what loads a model by its name. Both are pickled.
        notify: called with a message if no actor starts for a while, and if one ends.
    """

    def __init__(
        self,
        options: ClusterOptions,
        platform: Callable[[], Platform],
        open_model: Callable[[str], Open[Result]],
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._options = options
        self._choose = platform
        self._open_model = open_model
        self._notify = notify
        self._share: Share = divide(options)
        self._platform: Future[Platform] = Future()
        self._model: str | None = None
        self._thread = ThreadPoolExecutor(1, "cluster")
        # The rest belongs to that thread.
        self._loaded: Future[None] = Future()
        self._open: Open[Result] | None = None
        self._workers: list[_Worker] = []
        self._waiting: deque[_Batch] = deque()
        self._unfinished: set[_Batch] = set()
        self._failed_starts = 0
        self._left_out = 0  # actors that there is room for, but no memory
        self._lost = 0  # batches in a row
        self._error: Exception | None = None
        self._looked = time.monotonic()
        self._call(self._grow)

    @property
    def capacity(self) -> int:
        """See ``Executor.capacity``: for each actor the batch it generates, the next, and one that waits."""
        return 3 * self._share.actors

    @property
    def started(self) -> int:
        """The number of actors that have loaded the model."""
        return sum(worker.is_ready for worker in list(self._workers))

    def platform(self) -> Platform:
        """Wait for the first actor, and return what it generates on; all others must do the same.

        Raises:
            InputError: the nodes differ, or lack the device or the package.
        """
        return self._wait(self._platform)

    def load(self, model: str) -> None:
        """See ``Executor.load``. Returns when the first actor has loaded the model."""
        if model != self._model:
            self._model, loaded = model, Future[None]()
            self._call(self._load, self._open_model(model), loaded)
            self._wait(loaded)

    def submit(
        self, model: str, batch: Sequence[GenerationSettings], watch: Watch = ignore
    ) -> "Future[list[Result]]":
        """See ``Executor.submit``; ``watch`` is not called. The model must be the one loaded last."""
        assert model == self._model
        task = _Batch(list(batch))
        self._call(self._enqueue, task)
        return task.result

    def close(self) -> None:
        """End all actors, whatever they are doing."""
        self._thread.submit(self._end).result()
        self._thread.shutdown()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # closed, while an actor's result was on its way
            self._thread.submit(self._guarded, function, *arguments)

    def _wait(self, future: "Future[Any]") -> Any:
        try:
            return future.result(PATIENCE)
        except TimeoutError:
            if future.done():
                raise
        self._notify(f"waiting for actors with {self._share.of_each} each")
        return future.result()

    # What follows runs in the executor's thread.

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function; an error ends the run, which would otherwise wait forever."""
        try:
            function(*arguments)
        except InputError as error:
            self._stop(error)
        except Exception as error:
            self._stop(FailedError(line(f"{type(error).__name__}: {error}")))

    def _grow(self) -> None:
        """Start actors until there are as many as the cluster has room and memory for."""
        self._looked = time.monotonic()
        self._share = divide(self._options) if self._workers else self._share
        while len(self._workers) < max(1, self._share.actors - self._left_out) and self._error is None:
            self._start()

    def _start(self) -> None:
        worker = _Worker(start(Actor, self._share))
        self._workers.append(worker)
        reference = worker.handle.platform.remote(version("ssd1b"), self._choose)
        self._when_done(reference, self._started, worker)

    def _started(self, worker: _Worker, platform: "Future[Platform]") -> None:
        if (error := self._error_of(worker, platform)) is not None:
            self._fail_start(worker, error)
            return
        found = platform.result()
        if not self._platform.done():
            self._platform.set_result(found)
        elif self._platform.exception() is None and found != (first := self._platform.result()):
            self._stop(ConflictError(
                f"some nodes generate on {first.device} in {first.dtype}, others on {found.device} in "
                f"{found.dtype}: choose with --device and --dtype"
            ))  # fmt: skip
        self._load_into(worker)

    def _load(self, open_model: Open[Result], loaded: "Future[None]") -> None:
        self._open, self._loaded = open_model, loaded
        for worker in self._workers:
            if worker.is_ready:
                worker.is_ready = False
                self._load_into(worker)
        if self._error is not None:
            loaded.set_exception(self._error)

    def _load_into(self, worker: _Worker) -> None:
        if self._open is None:
            worker.is_ready = True  # for the first ``load``
            return
        self._when_done(worker.handle.load.remote(self._open), self._ready, worker, self._open)

    def _ready(self, worker: _Worker, opened: Open[Result], loaded: "Future[None]") -> None:
        if (error := self._error_of(worker, loaded)) is not None:
            self._fail_start(worker, error)
        elif opened is not self._open:
            self._load_into(worker)
        else:
            self._failed_starts = 0
            worker.is_ready = True
            if not self._loaded.done():
                self._loaded.set_result(None)
            self._dispatch()

    def _enqueue(self, task: _Batch) -> None:
        if self._error is not None:
            task.result.set_exception(self._error)
            return
        self._waiting.append(task)
        self._unfinished.add(task)
        self._dispatch()
        if time.monotonic() - self._looked > GROW_SECONDS:
            self._grow()

    def _dispatch(self) -> None:
        for worker in self._workers:
            self._give(worker, 1)
        # The next batch of each, so that none waits for the driver between two. Not at the end: the last
        # batches are for whichever actor is free first.
        for worker in self._workers:
            if len(self._waiting) > len(self._workers):
                self._give(worker, 2)

    def _give(self, worker: _Worker, most: int) -> None:
        while worker.is_ready and len(worker.batches) < most and self._waiting:
            task = self._waiting.popleft()
            if not task.result.cancelled():
                worker.batches.append(task)
                reference = worker.handle.generate.remote(task.settings)
                self._when_done(reference, self._generated, worker, task)

    def _generated(self, worker: _Worker, task: _Batch, results: "Future[list[Result]]") -> None:
        running, was_alive = worker.batches[0], worker in self._workers
        worker.batches.remove(task)
        error = self._error_of(worker, results)
        if error is None:
            self._failed_starts = self._lost = 0
            self._unfinished.discard(task)
            if not task.result.done():
                task.result.set_result(results.result())
        elif worker in self._workers:  # it lives
            self._fail(task, error)
        else:
            if was_alive:  # it ends once, for all its batches
                running.deaths += 1
            if task.deaths < MAX_DEATHS:
                self._waiting.appendleft(task)
            else:
                reason = LostError(f"{task.deaths} actors ended while they generated this batch: {error}")
                self._fail(task, reason)
                self._lost += 1
                if self._lost == MAX_LOST:
                    self._stop(
                        UnavailableError(f"{MAX_LOST} batches in a row failed, the last one because {reason}")
                    )
        self._dispatch()

    def _fail(self, task: _Batch, error: Exception) -> None:
        self._unfinished.discard(task)
        if not task.result.done():
            task.result.set_exception(error)

    def _error_of(self, worker: _Worker, future: "Future[Any]") -> Exception | None:
        """Return the error of a call. An actor that ended is replaced, unless its node is short of memory."""
        import ray

        error = future.exception()
        if error is None:
            return None
        if (own := error_of(error)) is not None:
            return own
        reason = end_of(error)
        if worker in self._workers:
            self._workers.remove(worker)
            ray.kill(worker.handle)
            if isinstance(reason, LowMemoryError) and self._workers:
                self._left_out += 1
                self._notify(f"an actor ended and is not replaced: {reason}")
            else:
                self._notify(f"an actor ended and is replaced: {reason}")
                self._start()
        return reason

    def _fail_start(self, worker: _Worker, error: Exception) -> None:
        self._failed_starts += 1
        most = MAX_SHORT_OF_MEMORY if isinstance(error, LowMemoryError) else MAX_FAILED_STARTS
        if worker in self._workers or self._failed_starts >= most:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """End the run with an error."""
        self._error = self._error or error
        for future in (self._platform, self._loaded, *(task.result for task in self._unfinished)):
            if not future.done():
                future.set_exception(self._error)
        self._waiting.clear()
        self._unfinished.clear()

    def _end(self) -> None:
        import ray

        self._stop(UnavailableError("the executor was closed"))
        workers, self._workers = self._workers, []  # so that none is replaced
        for worker in workers:
            ray.kill(worker.handle)

    def _when_done(self, reference: Any, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in the executor's thread with its arguments and the future of a reference."""
        reference.future().add_done_callback(partial(self._call, function, *arguments))
