"""The loaded models: started when needed, within a budget of memory, and ended when they are idle."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeAlias

import psutil

from ssd1b.jobs.session import Progress
from ssd1b.jobs.worker import ModelWorker, Worker
from ssd1b.server.metrics import Metrics
from ssd1b.server.options import ServerOptions

log = logging.getLogger("ssd1b.server")

StartWorker: TypeAlias = Callable[[str, Mapping[str, Any], Callable[[Progress], object]], ModelWorker]
"""Makes a worker from a model's name, keyword arguments of ``Pipeline.load``, and a listener to progress."""


class Pace:
    """How fast images are generated, as a moving average, to estimate how long others will take."""

    def __init__(self) -> None:
        self.seconds_per_cost: float | None = None
        """Seconds for a job of cost 1, see ``Job.cost``; None while no batch was timed."""

    def note(self, cost: int, seconds: float) -> None:
        """Take a batch into account.

        Args:
            cost: of its jobs.
            seconds: that it took.
        """
        now, before = seconds / max(cost, 1), self.seconds_per_cost
        self.seconds_per_cost = now if before is None else 0.7 * before + 0.3 * now


class Workers:
    """The processes with loaded models.

    A model is loaded when its first request comes. If memory does not suffice, the model that was idle
    longest is unloaded. A model that generates is never unloaded.

    Args:
        options: of the server.
        metrics: of the server.
        report: called from other threads with a worker and its progress.
        start: makes a worker.
        most: workers that there is room for; None if only memory limits them.
    """

    def __init__(
        self,
        options: ServerOptions,
        metrics: Metrics,
        report: Callable[[ModelWorker, Progress], object],
        start: StartWorker = Worker,
        most: int | None = None,
    ) -> None:
        self._metrics = metrics
        self._make = start
        self._most = math.inf if most is None else most
        self._given = options.models
        self._names: dict[ModelWorker, str] = {}
        """The name of each worker's model for clients."""
        self._report = report
        self._idle: dict[ModelWorker, float] = {}
        """Loaded workers without work, the one idle longest first, with the time since when."""
        self._loads: dict[ModelWorker, Future[int]] = {}
        """All workers, with the future of their process's id."""
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        given = options.max_memory
        self._budget = psutil.virtual_memory().total / 2 if given is None else given * 1e9
        self._loading = {
            "device": options.device, "dtype": options.dtype, "offline": options.offline,
            "prediction": options.prediction, "execution": options.execution,
            "threads": options.threads or "auto",
        }  # fmt: skip

    @property
    def loaded(self) -> list[str]:
        """Names of the models that are loaded or being loaded."""
        return [self._names[worker] for worker in self._loads]

    def preload(self, model: str) -> None:
        """Begin to load a model."""
        self._idle[self._start(model)] = time.monotonic()

    async def take(self, model: str) -> ModelWorker:
        """Return a worker that has loaded the model, for exclusive use until ``put_back``.

        Raises:
            InputError: the model cannot be loaded.
        """
        async with self._lock:
            self.end_lost()
            worker = next((each for each in self._idle if self._names[each] == model), None)
            if worker is None:
                await self._make_room()
                worker = self._start(model)
            else:
                del self._idle[worker]
        try:
            await asyncio.wrap_future(self._loads[worker])
        except BaseException:
            self._end(worker)
            raise
        return worker

    def put_back(self, worker: ModelWorker) -> None:
        """Return a worker. One whose process has ended is replaced at the next ``take``."""
        if worker.is_alive:
            self._idle[worker] = time.monotonic()
        elif worker in self._loads:
            self._metrics.crashes.labels(self._names[worker]).inc()
            self._end(worker)
        self._changed.set()

    def end_lost(self) -> None:
        """Forget the workers whose process ended without work, such as with its node of a cluster."""
        for worker in [each for each in self._idle if not each.is_alive]:
            model = self._names[worker]
            self.put_back(worker)
            log.warning(
                "an idle process of the model %s ended, and is started again when needed; processes left: %d",
                model, len(self._loads),
            )  # fmt: skip

    def end_idle(self, seconds: float) -> None:
        """Unload the models that were idle for so long."""
        for worker, since in list(self._idle.items()):
            if time.monotonic() - since > seconds:
                self._end(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in list(self._loads):
            self._end(worker)

    def memory(self) -> int:
        """Bytes that the processes hold."""
        return sum(_resident(load) for load in self._loads.values())

    async def _make_room(self) -> None:
        """Unload idle models until another one fits, or none is left."""
        while self._loads and (len(self._loads) >= self._most or self.memory() > self._budget):
            if self._idle:
                self._end(next(iter(self._idle)))
            else:
                self._changed.clear()
                await self._changed.wait()

    def _start(self, model: str) -> ModelWorker:
        worker: ModelWorker = self._make(
            self._given[model], self._loading, lambda progress: self._report(worker, progress)
        )
        self._names[worker] = model
        self._loads[worker] = worker.load()
        self._metrics.loads.labels(model).inc()
        return worker

    def _end(self, worker: ModelWorker) -> None:
        self._idle.pop(worker, None)
        self._loads.pop(worker, None)
        self._names.pop(worker, None)
        worker.close()
        self._changed.set()


def _resident(load: "Future[int]") -> int:
    if not load.done() or load.exception() is not None or load.result() == 0:
        return 0
    try:
        return int(psutil.Process(load.result()).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
