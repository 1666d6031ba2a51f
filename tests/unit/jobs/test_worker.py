"""A worker is a process: its results, its progress, and how it ends."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from PIL import Image

from ssd1b.errors import InputError, UnavailableError
from ssd1b.jobs.session import CancelledError, Progress
from ssd1b.jobs.store import DONE
from ssd1b.jobs.worker import Worker
from ssd1b.pipeline import Pipeline
from ssd1b.settings import GenerationSettings, resolve_settings
from waiting import wait_for

MODEL = "mini-ssd-1b"
LOADING = {"device": "cpu", "dtype": "fp32", "offline": True, "threads": 1}


def settings(prompt: str = "a large red metal sphere", steps: int = 4, seed: int = 0) -> GenerationSettings:
    return resolve_settings(
        prompt, family="ssd-1b", model_defaults={"seed": seed, "width": 128, "height": 128},
        preset=None, steps=steps,
    )  # fmt: skip


@pytest.fixture
def progress() -> list[Progress]:
    return []


@pytest.fixture
def worker(progress: list[Progress]) -> Iterator[Worker]:
    found = Worker(MODEL, LOADING, progress.append)
    yield found
    found.close()


def test_a_batch_is_what_its_images_are_alone_and_the_pipelines(worker: Worker) -> None:
    wanted = [settings("a small green rubber cube", seed=3), settings(seed=4)]
    results = worker.submit(wanted).result.result() if worker.load().result() else []
    assert [each.outcome.state for each in results] == [DONE, DONE]
    pipeline = Pipeline.load(MODEL, **LOADING)
    for each, one in zip(results, wanted, strict=True):
        assert each.file is not None
        with Image.open(io.BytesIO(each.file)) as image:
            assert hashlib.sha256(image.tobytes()).hexdigest() == each.outcome.digest
            (alone,) = pipeline.draw([one])
            difference = max(abs(a - b) for a, b in zip(image.tobytes(), alone.image.tobytes(), strict=True))
            assert difference <= 2, "of 255 levels"


def test_progress_and_previews_are_reported_while_somebody_wants_them(
    worker: Worker, progress: list[Progress]
) -> None:
    worker.load().result()
    worker.show_previews(True)
    worker.submit([settings(steps=6)]).result.result()
    wait_for(lambda: progress and progress[-1].step >= 4)
    assert [each.step for each in progress] == sorted(each.step for each in progress)
    seen = [each.preview for each in progress if each.preview]
    assert seen and Image.open(io.BytesIO(seen[-1])).format == "JPEG"
    progress.clear()
    worker.show_previews(False)
    worker.submit([settings(steps=6, seed=9)]).result.result()
    assert all(each.preview is None for each in progress)


def test_a_cancelled_batch_ends_within_a_step_and_the_next_one_is_generated(
    worker: Worker, progress: list[Progress]
) -> None:
    worker.load().result()
    worker.show_previews(True)  # with previews every step is reported
    batch = worker.submit([settings(steps=150)])
    wait_for(lambda: progress)
    worker.cancel(batch)
    at = progress[-1].step
    with pytest.raises(CancelledError):
        batch.result.result(60)
    # A report may be on its way while the batch is cancelled, and a step being computed is finished.
    assert progress[-1].step <= at + 3
    assert worker.submit([settings(steps=2)]).result.result()[0].outcome.state == DONE


def test_a_process_that_is_killed_is_an_error_and_never_a_hang(
    worker: Worker, progress: list[Progress]
) -> None:
    process = worker.load().result()
    batch = worker.submit([settings(steps=150)])
    time.sleep(0.3)
    os.kill(process, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="ended unexpectedly"):
        batch.result.result(60)
    assert not worker.is_alive
    with pytest.raises(UnavailableError, match="ended unexpectedly"):
        worker.submit([settings()]).result.result(60)


def test_a_model_that_does_not_exist_is_the_loads_error() -> None:
    worker = Worker("nosuchmodel", LOADING, lambda progress: None)
    with pytest.raises(InputError, match="nosuchmodel"):
        worker.load().result(60)
    worker.close()


PARENT = f"""
import time
from ssd1b.jobs.worker import Worker
if __name__ == "__main__":
    worker = Worker({MODEL!r}, {LOADING!r}, lambda progress: None)
    print(worker.load().result(), flush=True)
    time.sleep(600)
"""


def test_a_process_ends_with_its_parent_however_that_ends(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(30)
