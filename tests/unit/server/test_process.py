"""The server as a process with a model: signals, and what the next process finds."""

import hashlib
import io
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import psutil
import pytest
import requests
from PIL import Image

from picture_files import as_bytes, smooth
from server_process import ServerProcess
from waiting import wait_for

pytestmark = pytest.mark.enable_socket

JOB: dict[str, Any] = {"prompt": "a large red metal sphere on a blue background", "steps": 4}
SLOW = {**JOB, "steps": 150}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    found = ServerProcess(tmp_path / "store")
    found.wait()
    yield found
    found.process.kill()
    found.process.wait()


def state(server: ServerProcess, job: str) -> str:
    return server.ask("GET", f"/v1/jobs/{job}")["state"]


def submit(server: ServerProcess, **body: Any) -> str:
    return server.ask("POST", "/v1/jobs", {**JOB, **body})["id"]


def children(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def test_a_shutdown_finishes_what_runs_and_keeps_what_waits(server: ServerProcess) -> None:
    first, *others = [
        submit(server, steps=40, seed=10),
        *(submit(server, seed=seed, steps=3) for seed in range(3)),
    ]
    wait_for(lambda: state(server, first) == "running")
    server.process.send_signal(signal.SIGTERM)
    with suppress(URLError, ConnectionError):  # it may have ended already
        with pytest.raises(HTTPError) as refused:
            submit(server)
        with refused.value as answer:
            assert answer.code == 503
    assert server.process.wait(60) == 0
    server.begin()
    server.wait()
    assert state(server, first) == "done"
    wait_for(lambda: all(state(server, job) == "done" for job in others))


def test_during_a_shutdown_every_request_is_answered_until_the_batch_is_done(server: ServerProcess) -> None:
    running = submit(server, steps=60)
    wait_for(lambda: state(server, running) == "running")
    with ThreadPoolExecutor() as pool:
        body = {"prompt": "a client that waits", "steps": 3, "seed": 5}
        waiting = pool.submit(requests.post, f"{server.url}/v1/images/generations", json=body, timeout=60)
        wait_for(lambda: len(server.ask("GET", "/v1/queue")) == 2)
        server.process.send_signal(signal.SIGTERM)
        answer = waiting.result(10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert answer.headers["retry-after"] == "10"
    answers: list[int] = []
    with suppress(requests.ConnectionError):
        while server.process.poll() is None:
            answers.append(requests.post(f"{server.url}/v1/jobs", json=JOB, timeout=60).status_code)
            assert requests.get(f"{server.url}/healthz", timeout=60).status_code == 200
            time.sleep(0.1)
    assert server.process.wait(30) == 0
    assert len(answers) > 5 and set(answers) == {503}, answers
    assert "Traceback" not in server.log.read_text()
    server.begin()
    server.wait()
    assert state(server, running) == "done", "its batch was finished before the end"
    (other,) = [each for each in server.ask("GET", "/v1/jobs")["jobs"] if each["id"] != running]
    assert other["state"] == "cancelled", "its client got a 503 and tries again"


def test_a_shutdown_that_takes_too_long_keeps_what_was_not_finished(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "store", "--drain-seconds", "1")
    server.wait()
    try:
        job = submit(server, steps=150)
        wait_for(lambda: state(server, job) == "running")
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 8
        server.begin()
        server.wait()
        assert state(server, job) in ("queued", "running")
    finally:
        server.process.kill()
        server.process.wait()


def test_a_second_signal_ends_it_at_once_and_loses_nothing(server: ServerProcess) -> None:
    job = submit(server, steps=150, count=8)
    wait_for(lambda: state(server, job) == "running")
    workers = children(server)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    assert time.monotonic() - begin < 10
    # multiprocessing's resource tracker ends a moment later than its parent.
    wait_for(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in workers))
    server.begin()
    server.wait()
    assert state(server, job) in ("queued", "running")


def test_a_worker_that_is_killed_is_replaced_and_its_batch_repeated(server: ServerProcess) -> None:
    job = submit(server, steps=60)
    wait_for(lambda: server.ask("GET", f"/v1/jobs/{job}")["step"] > 0 or state(server, job) == "done")
    for each in children(server):
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(each.cmdline()):
                each.send_signal(signal.SIGKILL)
    wait_for(lambda: state(server, job) == "done")


def counters(server: ServerProcess) -> dict[str, float]:
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(ssd1b_\S+?) (\S+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("kills", [3])
def test_a_server_that_is_killed_again_and_again_loses_nothing_and_generates_nothing_twice(
    server: ServerProcess, kills: int
) -> None:
    chance = random.Random(0)
    jobs: list[str] = []
    for _ in range(kills):
        jobs += [submit(server, seed=1000 * len(jobs) + 10 * number, count=2) for number in range(4)]
        time.sleep(chance.uniform(0.1, 1.5))
        server.stop(signal.SIGKILL)
        server.begin()
        server.wait()
    wait_for(lambda: all(state(server, job) in ("done", "failed") for job in jobs))
    answers = [server.ask("GET", f"/v1/jobs/{job}") for job in jobs]
    assert {each["state"] for each in answers} == {"done"}, [each["error"] for each in answers]
    pictures = [image["url"] for each in answers for image in each["images"]]
    assert len(pictures) == len(set(pictures)) == 2 * len(jobs)
    files = list((server.folder / "pictures").rglob("*.png"))
    assert len(files) == 2 * len(jobs), "one file for each image, and nothing half-written"
    for file in files:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            assert hashlib.sha256(image.tobytes()).hexdigest()
    assert not [name for name in os.listdir(server.folder) if name.startswith(".tmp")]


def test_a_job_that_starts_from_a_picture_survives_a_kill(server: ServerProcess) -> None:
    picture = as_bytes(smooth(128, 128))
    upload = requests.post(f"{server.url}/v1/uploads", data=picture, timeout=60).json()["id"]
    busy = submit(server, steps=150)
    job = submit(server, init_image=upload, strength=0.5, steps=8, seed=3)
    server.stop(signal.SIGKILL)
    server.begin()
    server.wait()
    assert requests.get(f"{server.url}/v1/uploads/{upload}", timeout=60).content == picture
    server.ask("POST", f"/v1/jobs/{busy}/cancel", {})
    wait_for(lambda: state(server, job) in ("done", "failed"))
    answer = server.ask("GET", f"/v1/jobs/{job}")
    assert answer["state"] == "done", answer["error"]
    file = requests.get(server.url + answer["images"][0]["url"], timeout=60).content
    assert upload.encode() in file and str(server.folder).encode() not in file, "a recipe has no folders"
