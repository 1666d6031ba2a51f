"""Executors: futures, one model at a time, progress and cancellation; the driver with several at once."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Barrier

import pytest

from lab_cells import Fake, run, sweep, wanted
from ssd1b.diffusion.samplers import Step
from ssd1b.errors import InputError
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import Inline, JobResult, Render, renderer
from ssd1b.jobs.store import Store
from ssd1b.pipeline import Pipeline, Watch, ignore
from ssd1b.settings import GenerationSettings


def test_one_model_is_loaded_at_a_time_and_the_last_one_is_kept() -> None:
    seen = []

    @contextmanager
    def load(name: str) -> Iterator[Render[JobResult]]:
        seen.append(f"load {name}")
        yield Fake()
        seen.append(f"unload {name}")

    settings = [wanted(sweep("seed=1"))[0].settings]
    with closing(Inline(load)) as executor:
        executor.load("one")
        for name in ("one", "one", "other"):
            ((outcome, _),) = executor.submit(name, settings).result()
            assert outcome.error is None
    assert seen == ["load one", "unload one", "load other", "unload other"]


def test_what_the_drawing_raises_is_the_futures_but_ctrl_c_is_not() -> None:
    def failing(error: BaseException) -> Inline[JobResult]:
        def render(batch: Sequence[GenerationSettings], watch: Watch) -> list[JobResult]:
            raise error

        @contextmanager
        def load(name: str) -> Iterator[Render[JobResult]]:
            yield render

        return Inline(load)

    future = failing(InputError("the disk is full")).submit("one", [])
    with pytest.raises(InputError, match="the disk is full"):
        future.result()
    with pytest.raises(KeyboardInterrupt):
        failing(KeyboardInterrupt()).submit("one", [])


def test_steps_are_watched_and_a_drawing_is_cancelled_between_them() -> None:
    mini = Pipeline.load("mini-sdxl", device="cpu", dtype="fp32")
    batch = [mini.settings("a red cube", seed=seed, steps=3) for seed in (1, 2)]
    seen: list[int] = []

    def cancel(step: Step) -> None:
        seen.append(step.index)
        if step.index == 1:
            raise CancelledError

    with closing(Inline(lambda name: renderer(mini, lambda picture, prompt: {}))) as executor:
        future = executor.submit("mini-sdxl", batch, cancel)
        with pytest.raises(CancelledError):
            future.result()
        assert seen == [0, 1], "the pictures of a cancelled batch are not drawn one by one"
        assert len(executor.submit("mini-sdxl", batch, lambda step: seen.append(step.index)).result()) == 2
    assert seen == [0, 1, 0, 1, 2]


class Threads:
    """Two threads, each of which begins only when both have a batch."""

    capacity = 2

    def __init__(self, fake: Fake) -> None:
        self.fake, self.pool, self.barrier = fake, ThreadPoolExecutor(2), Barrier(2, timeout=10)

    def load(self, model: str) -> None:
        pass

    def submit(
        self, model: str, batch: Sequence[GenerationSettings], watch: Watch = ignore
    ) -> Future[list[JobResult]]:
        def draw() -> list[JobResult]:
            self.barrier.wait()
            return self.fake(batch)

        return self.pool.submit(draw)


def test_as_many_batches_are_under_way_as_the_executor_takes(tmp_path: Path) -> None:
    what = sweep("guidance=2-5", "seed=1-3")
    fake, again, advanced = Fake(), Fake(), []
    with closing(Store(tmp_path)) as store:
        executor = Threads(fake)
        draw_jobs(plan(wanted(what), store), store, executor, advance=lambda job: advanced.append(job.key))
        assert fake.drawn == 12 and sorted(advanced) == sorted(job.key for job in wanted(what))
        run(store, what, again)
        assert again.drawn == 0
    executor.pool.shutdown()
