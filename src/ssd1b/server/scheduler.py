"""The scheduler: waiting images go to workers in batches, and results into the ledger."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch

from ssd1b import batching
from ssd1b.errors import FailedError, InputError, UnavailableError
from ssd1b.jobs.executor import JobResult
from ssd1b.jobs.fairness import Picked, Turns
from ssd1b.jobs.job import PIXELS_PER_BATCH
from ssd1b.jobs.queue import FAILED, FINISHED, MAX_STARTS, QUEUED, RUNNING, Request
from ssd1b.jobs.session import CancelledError, Progress
from ssd1b.jobs.store import FAILED as JOB_FAILED
from ssd1b.jobs.store import Outcome
from ssd1b.jobs.worker import Batch, ModelWorker, Worker
from ssd1b.model import Model
from ssd1b.runtime import choose_device
from ssd1b.server.errors import UNEXPECTED
from ssd1b.server.files import Files
from ssd1b.server.ledger import Ledger, left
from ssd1b.server.metrics import Metrics
from ssd1b.server.options import ServerOptions
from ssd1b.server.workers import Pace, StartWorker, Workers
from ssd1b.threads import batch_threads

log = logging.getLogger("ssd1b.server")

_OTHERS = 0.5
"""Seconds between looks at jobs that another process is generating."""

_FATAL = "CUDA error"
"""In an error: the process can use the device no more."""


@dataclass(eq=False, slots=True)
class Run:
    """A batch on its way.

    Attributes:
        picked: its images with their requests.
        worker: generates it; None before and after.
        batch: of the worker.
        threads: of the processor that it keeps busy.
        generating: whether it needs a worker, or has one.
        begun: when a worker began to generate it, by the monotonic clock; None before.
        step: denoising steps that are done.
        stepped: when the last of them was.
    """

    picked: list[Picked]
    threads: int
    worker: ModelWorker | None = None
    batch: Batch | None = None
    generating: bool = True
    begun: float | None = None
    step: int = 0
    stepped: float = 0.0

    @property
    def requests(self) -> list[Request]:
        """The requests of its images."""
        return list(dict.fromkeys(request for request, _ in self.picked))

    @property
    def keys(self) -> list[str]:
        """The keys of its jobs."""
        return [image.job.key for _, image in self.picked]

    @property
    def cost(self) -> int:
        """The cost of its jobs, see ``Job.cost``."""
        return sum(image.job.cost for _, image in self.picked)

    @property
    def steps(self) -> int:
        """Its denoising steps, and the decoding, which takes about as long as one."""
        return self.picked[0][1].job.settings.total_steps + 1

    @property
    def pace(self) -> float | None:
        """Seconds of a step, on average; None before the first one is done."""
        return None if self.begun is None or not self.step else (self.stepped - self.begun) / self.step

    def seconds_left(self, now: float) -> float | None:
        """Estimate the seconds until it is done from its steps; None before the first one is done.

        Between two steps the time that passes counts, but a step that takes longer than others is not over.
        """
        if self.pace is None:
            return None
        return max(self.steps - self.step, 1) * self.pace - min(now - self.stepped, self.pace)


class Scheduler:
    """Generates what the ledger's requests wait for.

    Args:
        ledger: of the server.
        models: the models that are served, by name.
        files: that images are generated from.
        options: of the server.
        metrics: of the server.
        start: see ``Workers``.
        most: see ``Workers``.
    """

    def __init__(
        self,
        ledger: Ledger,
        models: Mapping[str, Model],
        files: Files,
        options: ServerOptions,
        metrics: Metrics,
        start: StartWorker = Worker,
        most: int | None = None,
    ) -> None:
        self.workers = Workers(options, metrics, self._report, start, most)
        self.pace = Pace()
        self._ledger = ledger
        self._models = models
        self._files = files
        self._options = options
        self._most = options.workers or most
        self._metrics = metrics
        self._turns = Turns()
        self._runs: dict[asyncio.Task[None], Run] = {}
        self._wake = asyncio.Event()
        self._unreleased: set[str] = set()
        """Keys of jobs that this process has claimed and will not finish."""

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.get_running_loop()
        self._dispatcher = asyncio.create_task(self._dispatch())
        self._wake.set()

    @property
    def is_healthy(self) -> bool:
        """Whether requests are still being worked on."""
        return not self._dispatcher.done()

    @property
    def generating(self) -> int:
        """How many batches are being generated."""
        return sum(run.generating for run in self._runs.values())

    @property
    def seconds_per_cost(self) -> float | None:
        """Seconds for a job of cost 1, by finished batches or the steps of the first; None before."""
        if self.pace.seconds_per_cost is not None:
            return self.pace.seconds_per_cost
        running = [run for run in self._runs.values() if run.generating]
        timed = [run.steps * pace / run.cost for run in running if (pace := run.pace)]
        return fmean(timed) / len(running) if timed else None

    def seconds_left(self, request: Request, ahead: Iterable[Request]) -> float | None:
        """Estimate the seconds until a request is done; None while nothing was timed.

        It is done with the last of its batches. If some of its images wait, they begin when those batches end
        that are being generated now, and what waits ahead of them is done.

        Args:
            request: it is not finished.
            ahead: the requests before it in the queue.
        """
        if (pace := self.seconds_per_cost) is None:
            return None
        now = time.monotonic()
        runs = {run: self._left(run, pace, now) for run in self._runs.values()}
        begun = {key for run in runs for key in run.keys}
        mine = {image.job.key for image in request.left}
        if mine <= begun:
            own = [seconds for run, seconds in runs.items() if not mine.isdisjoint(run.keys)]
            return max(own, default=0.0)
        waiting = {image.job.key: image.job.cost for image in left([*ahead, request])}
        return fmean(runs.values() or [0.0]) + pace * sum(waiting[key] for key in waiting.keys() - begun)

    def _left(self, run: Run, pace: float, now: float) -> float:
        """Estimate the seconds until a batch is done, before its first step from the batches before it."""
        if not run.generating:
            return 0.0  # it is being stored
        if (seconds := run.seconds_left(now)) is not None:
            return seconds
        passed = 0.0 if run.begun is None else now - run.begun
        return max(run.cost * pace * self.generating - passed, 0.0)

    def wake(self) -> None:
        """Look for images that can be generated."""
        self._wake.set()

    def stop(self) -> None:
        """Begin no more batches."""
        self._dispatcher.cancel()

    async def close(self, seconds: float) -> None:
        """Wait for the batches that are being generated, then end all processes."""
        await self.drain(seconds)
        self.workers.close()

    async def drain(self, seconds: float) -> None:
        """Begin no more batches, and wait for those that are being generated, at most so long."""
        self.stop()
        if self._runs:
            await asyncio.wait(self._runs, timeout=seconds)
        self.hurry()
        if self._runs:
            await asyncio.wait(self._runs)

    def hurry(self) -> None:
        """Give up the batches that are being generated. The next start of the server repeats them."""
        for task in self._runs:
            task.cancel()

    def stop_finished(self) -> None:
        """Stop the batches whose requests are all finished: cancelled, or too late."""
        for run in self._runs.values():
            if run.worker is not None and run.batch is not None:
                if all(request.state in FINISHED for request in run.requests):
                    run.worker.cancel(run.batch)

    def show_previews(self) -> None:
        """Turn previews on for the batches that somebody watches, and off for the others."""
        for run in self._runs.values():
            if run.worker is not None:
                run.worker.show_previews(self._ledger.is_watched(run.requests))

    def _report(self, worker: ModelWorker, progress: Progress) -> None:
        """Take progress from a worker; called from another thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._note, worker, progress)

    def _note(self, worker: ModelWorker, progress: Progress) -> None:
        for run in self._runs.values():
            if run.worker is worker and run.batch is not None and run.batch.number == progress.batch:
                run.step, run.stepped = progress.step, time.monotonic()
                for request in run.requests:
                    request.step = progress.step
                if progress.preview is not None:
                    run.picked[0][0].preview = progress.preview
                self._ledger.tell(run.requests)

    async def _dispatch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while picked := self._turns.choose(
                self._ledger.open.values(),
                {key for run in self._runs.values() for key in run.keys},
                group=_group,
                limit=self._limit,
                fits=self._fits,
            ):
                run = Run(picked, self._threads(picked))
                task = asyncio.create_task(self._generate(run))
                self._runs[task] = run
                task.add_done_callback(self._over)

    def _over(self, task: "asyncio.Task[None]") -> None:
        del self._runs[task]
        self._wake.set()

    def _limit(self, picked: Picked) -> int:
        request, image = picked
        if request.state == QUEUED and request.starts:  # its process died: it may be the reason
            return 1
        width, height = image.job.settings.final_size
        limit = min(self._options.max_batch, PIXELS_PER_BATCH // (width * height))
        return batching.batch_limit(image.job.settings, limit)

    def _fits(self, picked: list[Picked]) -> bool:
        """Whether a batch can be generated next to the others: the processor has threads for all of them."""
        running = [run for run in self._runs.values() if run.generating]
        if self._most is not None:
            return len(running) < self._most
        threads = sum(run.threads for run in running) + self._threads(picked)
        return not running or threads <= torch.get_num_threads()

    def _threads(self, picked: list[Picked]) -> int:
        available = torch.get_num_threads()
        if choose_device(self._options.device).type != "cpu":
            return available  # one batch at a time
        job = picked[0][1].job
        layout, settings = self._models[job.model].layout, job.settings
        return self._options.threads or batch_threads(
            layout.unet, settings.height // 8, settings.width // 8, len(picked), available
        )

    async def _generate(self, run: Run) -> None:
        try:
            await self._claim(run)
            if run.picked:
                results = await self._results(run)
                await self._store(run, results)
        except CancelledError:
            await self._release(run)
        except InputError as error:
            await self._release(run)
            await self._fail(run, error)
        except Exception:
            log.exception("unexpected error")
            await self._release(run)
            await self._fail(run, FailedError(UNEXPECTED))

    async def _release(self, run: Run) -> None:
        self._unreleased.update(run.keys)
        with suppress(InputError):  # the disk refused: the next batch tries again
            await self._release_all()

    async def _release_all(self) -> None:
        if keys := set(self._unreleased):
            await self._ledger.keep(partial(self._ledger.store.release, keys))
            self._unreleased -= keys

    async def _fail(self, run: Run, error: InputError) -> None:
        """Fail the requests of a batch. If its process died, those that began only once wait again."""
        again: list[Request] = []
        if isinstance(error, UnavailableError):
            again = [each for each in run.requests if each.state not in FINISHED and each.starts < MAX_STARTS]
            for request in again:
                request.starts += request.state == QUEUED  # the process ended while it loaded the model
                request.state, request.step, request.preview = QUEUED, 0, None
            await self._ledger.update(again)
            repeated = sum(request in again for request, _ in run.picked)
            log.warning(
                "%s: %d of its %d images are generated again; processes left: %d",
                error, repeated, len(run.picked), len(self.workers.loaded),
            )  # fmt: skip
        await self._ledger.finish([each for each in run.requests if each not in again], FAILED, error)

    async def _claim(self, run: Run) -> None:
        """Take images that are stored already, and leave in the batch what this process is to generate.

        What failed before is tried again.
        """
        await self._release_all()
        store = self._ledger.store
        found = await self._ledger.keep(partial(store.outcomes, run.keys))
        known = {key: outcome for key, outcome in found.items() if outcome.state != JOB_FAILED}
        if known:
            await self._ledger.take(known)
        unknown = [key for key in run.keys if key not in known]
        claim = partial(store.claim, unknown, retry=True)
        claimed = set(await self._ledger.write(claim)) if unknown else set()
        if unknown and not claimed:
            await asyncio.sleep(_OTHERS)
        run.picked = [(request, image) for request, image in run.picked if image.job.key in claimed]

    async def _begin(self, run: Run) -> None:
        now = time.time()
        beginning = [request for request in run.requests if request.state == QUEUED]
        for request in beginning:
            request.state, request.started = RUNNING, request.started or now
            request.starts += 1
            self._metrics.queued.observe(now - request.created)
        await self._ledger.update(beginning)

    async def _results(self, run: Run) -> Sequence[JobResult]:
        model = run.picked[0][1].job.model
        worker = await self.workers.take(model)
        run.worker = worker
        try:
            await self._begin(run)  # not before the model is loaded, which may be what ends the process
            worker.show_previews(self._ledger.is_watched(run.requests))
            run.begun = time.monotonic()
            run.batch = worker.submit([self._files.located(image.job.settings) for _, image in run.picked])
            self.stop_finished()  # it may have been cancelled while the model was loaded
            results = await asyncio.wrap_future(run.batch.result)
            if any(_FATAL in (drawn.outcome.error or "") for drawn in results):
                worker.close()
                raise UnavailableError(f"the device failed: {_FATAL}")
        finally:
            run.worker, run.generating = None, False
            self.workers.put_back(worker)
            self._wake.set()
        seconds = time.monotonic() - run.begun
        self.pace.note(run.cost, seconds / (1 + self.generating))
        self._metrics.generating.labels(model).observe(seconds)
        self._metrics.batch_size.observe(len(run.picked))
        return results

    async def _store(self, run: Run, results: Sequence[JobResult]) -> None:
        rows = [
            (key, self._without_folders(drawn.outcome), drawn.file)
            for key, drawn in zip(run.keys, results, strict=True)
        ]
        await self._ledger.write(partial(self._ledger.store.finish, rows))
        for (_, image), drawn in zip(run.picked, results, strict=True):
            result = "failed" if drawn.outcome.state == JOB_FAILED else "done"
            self._metrics.images.labels(image.job.model, result).inc()
        await self._ledger.take({key: outcome for key, outcome, _ in rows})

    def _without_folders(self, outcome: Outcome) -> Outcome:
        error = outcome.error and self._files.without_folders(outcome.error)
        return outcome if error == outcome.error else replace(outcome, error=error)


def _group(picked: Picked) -> tuple[object, ...]:
    """What images of a batch have in common."""
    _, image = picked
    return (image.job.model, image.job.batch)
