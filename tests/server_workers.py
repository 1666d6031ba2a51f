"""Workers without a model: threads that make plain images, as slowly as a test wants, or fail."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from PIL import Image

from ssd1b.errors import InputError, UnavailableError
from ssd1b.images import Picture, encode_picture
from ssd1b.jobs.executor import JobResult, thumbnail
from ssd1b.jobs.session import CancelledError, Progress
from ssd1b.jobs.store import DONE, FAILED, Outcome
from ssd1b.jobs.worker import Batch, Worker
from ssd1b.recipe import ModelIdentity, Recipe, without_folders
from ssd1b.settings import GenerationSettings

IDENTITY = ModelIdentity(name="plain", source="plain", revision=None, layout="mini-ssd-1b")


class Plan:
    """What workers do, and what they did.

    Attributes:
        seconds: for each step.
        batches: the prompts of each batch.
        steps: denoising steps in all.
        crashes: prompts whose batch ends the process, so many more times.
        broken: prompts whose image fails.
        missing: models that cannot be loaded.
        fatal: models that end the process while they are loaded.
        loads: models in the order in which they were loaded.
        closed: models whose worker was ended.
        gate: steps wait for it.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[str]] = []
        self.steps = 0
        self.crashes: dict[str, int] = {}
        self.broken: dict[str, str] = {}
        self.missing: set[str] = set()
        self.fatal: set[str] = set()
        self.loads: list[str] = []
        self.closed: list[str] = []
        self.previewed = False
        self.gate = threading.Event()
        self.gate.set()

    def start(
        self, model: str, options: Mapping[str, Any], report: Callable[[Progress], object]
    ) -> "FakeWorker":
        return FakeWorker(model, report, self)


class FakeWorker(Worker):
    """As ``jobs.worker.Worker``, in a thread."""

    def __init__(self, model: str, report: Callable[[Progress], object], plan: Plan) -> None:
        self.model = model
        self._ended_early = False
        self._report, self._plan = report, plan
        self._batches = self._cancelled = 0

    def load(self) -> "Future[int]":
        self._plan.loads.append(self.model)
        future: Future[int] = Future()
        if self.model in self._plan.fatal:
            self._ended_early = True
            future.set_exception(UnavailableError("the process ended"))
        elif self.model in self._plan.missing:
            future.set_exception(InputError(f"{self.model} is damaged"))
        else:
            future.set_result(0)
        return future

    def submit(self, batch: Sequence[GenerationSettings]) -> Batch:
        self._batches += 1
        result: Future[list[JobResult]] = Future()
        arguments = (self._batches, list(batch), result)
        threading.Thread(target=self._generate, args=arguments, daemon=True).start()
        return Batch(self._batches, result)

    def _generate(self, number: int, batch: list[GenerationSettings], result: "Future[Any]") -> None:
        plan = self._plan
        plan.batches.append([settings.prompt for settings in batch])
        for step in range(batch[0].steps):
            plan.gate.wait()
            time.sleep(plan.seconds)
            if not self.is_alive:
                result.set_exception(UnavailableError("the process ended"))
                return
            if number <= self._cancelled:
                result.set_exception(CancelledError())
                return
            plan.steps += 1
            self._report(Progress(number, step + 1, b"jpeg" if plan.previewed else None))
        for settings in batch:
            if plan.crashes.get(settings.prompt, 0) > 0:
                plan.crashes[settings.prompt] -= 1
                self._ended_early = True
                result.set_exception(UnavailableError("the process ended"))
                return
        result.set_result([self._one(settings) for settings in batch])

    def _one(self, settings: GenerationSettings) -> JobResult:
        if settings.prompt in self._plan.broken:
            return JobResult(Outcome(state=FAILED, error=self._plan.broken[settings.prompt]), None)
        image = Image.new("RGB", (64, 64), (settings.seed % 256, settings.steps % 256, 80))
        recipe = without_folders(Recipe.of(settings, IDENTITY, dtype="float32", device="cpu", batch_size=1))
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        outcome = Outcome(state=DONE, digest=digest, passes=4.0, metrics={}, thumbnail=thumbnail(image))
        return JobResult(outcome, encode_picture(Picture(image=image, recipe=recipe), "png"))

    def cancel(self, batch: Batch) -> None:
        self._cancelled = max(self._cancelled, batch.number)

    def show_previews(self, wanted: bool) -> None:
        self._plan.previewed = wanted

    def close(self) -> None:
        self._ended_early = True
        self._plan.closed.append(self.model)
