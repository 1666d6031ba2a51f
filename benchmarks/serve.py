"""The server under load: throughput, overhead, cancellation, memory, and what is left after SIGKILL.

    python benchmarks/serve.py docs/log/serving             # all parts, ten minutes
    python benchmarks/serve.py /tmp/serving --only load --seconds 20
    python benchmarks/serve.py docs/log/cluster --only ray  # two replicas, of which one is killed

Writes ``serving.json`` and a plot. The clients are threads of this process and share the machine with the
server. "best" is the throughput of a pipeline alone in its best batch, measured in the same run before and
after the load; everything else is asked of ``ssd1b serve`` over HTTP.
"""

import argparse
import base64
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import requests
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from server_process import ServerProcess

MODEL = "mini-ssd-1b"
STEPS = 20
PROMPTS = [
    f"a {size} {color} {material} {shape} on a {other} background"
    for size in ("large", "small") for color in ("red", "green") for material in ("metal", "rubber")
    for shape in ("sphere", "cube") for other in ("blue", "white")
]  # fmt: skip
CLIENTS = 64
CANCELLED = LEFT = 0.1

BEST = """
import json, sys, time
from ssd1b import Pipeline
pipeline = Pipeline.load(sys.argv[1], device="cpu", offline=True)
prompts, steps, seconds, found = json.loads(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), {}
for size in (1, 2, 4, 8, 16):
    begin, images = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        settings = [pipeline.settings(prompts[i % len(prompts)], steps=steps, seed=i) for i in range(size)]
        images += len(pipeline.draw(settings))
    found[size] = images / (time.perf_counter() - begin)
print(json.dumps(found))
"""


class Server(ServerProcess):
    """``ssd1b serve`` with the miniature."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, "--model", MODEL, "--device", "cpu", *options, threads=None)

    def metrics(self) -> dict[str, float]:
        text = requests.get(f"{self.url}/metrics", timeout=30).text
        return {name: float(value) for name, value in re.findall(r"^(ssd1b_\S+) (\S+)$", text, re.MULTILINE)}

    def metric(self, name: str) -> float:
        return sum(value for key, value in self.metrics().items() if key.split("{")[0] == name)

    def memory(self) -> dict[str, float]:
        """Resident megabytes of the server and of its workers."""
        server = psutil.Process(self.process.pid)
        children = sum(each.memory_info().rss for each in server.children(recursive=True))
        return {"server": server.memory_info().rss / 1e6, "workers": children / 1e6}

    def jobs(self) -> Iterator[dict[str, Any]]:
        before = None
        while True:
            page = requests.get(
                f"{self.url}/v1/jobs", params={"limit": 500, "before": before}, timeout=60
            ).json()
            yield from page["jobs"]
            before = page["next"]
            if before is None:
                return


@contextmanager
def serving(*options: str) -> Generator[Server, None, None]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "store", *options)
        server.wait()
        warm = requests.post(f"{server.url}/v1/images/generations", json=job(0), timeout=120)
        warm.raise_for_status()
        try:
            yield server
        finally:
            server.stop()


def job(seed: int, **more: Any) -> dict[str, Any]:
    return {"prompt": PROMPTS[seed % len(PROMPTS)], "steps": STEPS, "seed": seed, **more}


def best(seconds: float) -> dict[str, float]:
    """Images per second of a pipeline for each size of batch."""
    run = [sys.executable, "-c", BEST, MODEL, json.dumps(PROMPTS), str(STEPS), str(seconds)]
    return json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


class Clients:
    """Many clients that ask in all dialects; some cancel, some leave."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server, self.end = server, time.monotonic() + seconds
        self.answers: Counter[str] = Counter()
        self.accepted: set[str] = set()
        self._lock, self._seeds = threading.Lock(), iter(range(1000, 10**9))

    def run(self, number: int) -> None:
        chance, session = random.Random(number), requests.Session()
        usual = (self._openai, self._a1111, self._native)[number % 3]
        while time.monotonic() < self.end:
            with self._lock:
                seed = next(self._seeds)
            (act,) = chance.choices(
                (self._cancel, self._leave, usual), (CANCELLED, LEFT, 1 - CANCELLED - LEFT)
            )
            try:
                answer = act(session, job(seed), chance)
                if answer is not None and answer.status_code == 429:
                    time.sleep(float(answer.headers["retry-after"]))
            except requests.ConnectionError as error:
                self._note(f"error {type(error).__name__}")

    def _note(self, answer: str, accepted: str | None = None) -> None:
        with self._lock:
            self.answers[answer] += 1
            self.accepted |= {accepted} if accepted else set()

    def _post(self, name: str, session: requests.Session, path: str, body: Any = None) -> requests.Response:
        answer = session.post(self.server.url + path, json=body, timeout=300)
        self._note(f"{name} {answer.status_code}", answer.json()["id"] if answer.status_code == 202 else None)
        return answer

    def _openai(self, session: requests.Session, body: Any, chance: random.Random) -> requests.Response:
        answer = self._post("openai", session, "/v1/images/generations", body)
        if answer.status_code == 200:
            base64.b64decode(answer.json()["data"][0]["b64_json"], validate=True)
        return answer

    def _a1111(self, session: requests.Session, body: Any, chance: random.Random) -> requests.Response:
        return self._post("a1111", session, "/sdapi/v1/txt2img", body | {"width": 128, "height": 128})

    def _native(self, session: requests.Session, body: Any, chance: random.Random) -> requests.Response:
        answer = self._post("jobs", session, "/v1/jobs", body)
        if answer.status_code == 202:
            follow(self.server, session, answer.json()["id"])
        return answer

    def _cancel(self, session: requests.Session, body: Any, chance: random.Random) -> requests.Response:
        answer = self._post("jobs", session, "/v1/jobs", body)
        if answer.status_code == 202:
            time.sleep(chance.uniform(0, 3))
            self._post("cancel", session, f"/v1/jobs/{answer.json()['id']}/cancel")
        return answer

    def _leave(self, session: requests.Session, body: Any, chance: random.Random) -> None:
        with suppress(requests.Timeout):
            path = f"{self.server.url}/v1/images/generations"
            requests.post(path, json=body, timeout=chance.uniform(0.05, 3))
        self._note("left")


def follow(server: Server, session: requests.Session, id: str) -> None:
    """Read the events of a job until it is finished."""
    with session.get(f"{server.url}/v1/jobs/{id}/events", stream=True, timeout=300) as stream:
        for _ in stream.iter_lines():
            pass


def load(
    seconds: float, *options: str, halfway: Callable[[Server], object] = lambda server: None
) -> dict[str, Any]:
    """Throughput under load, beside that of ``generate`` alone, and how every job ended."""
    before = best(seconds / 15)
    timeline: list[tuple[float, float, float]] = []
    with serving(*options) as server:
        clients, start = Clients(server, seconds), time.monotonic()

        def watch() -> None:
            while time.monotonic() < clients.end:
                memory = sum(server.memory().values())
                timeline.append((time.monotonic() - start, server.metric("ssd1b_images_total"), memory))
                time.sleep(1)

        threading.Thread(target=watch, daemon=True).start()
        threading.Timer(seconds / 2, halfway, [server]).start()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(clients.run, range(CLIENTS)))
        while server.metric("ssd1b_images_waiting"):
            time.sleep(0.2)
        jobs = list(server.jobs())
        batches = server.metric("ssd1b_batch_size_count"), server.metric("ssd1b_batch_size_sum")
    after = best(seconds / 15)
    rate = (timeline[-1][1] - timeline[0][1]) / (timeline[-1][0] - timeline[0][0])
    wrong = [
        each["id"] for each in jobs
        if each["state"] not in ("done", "cancelled")
        or (each["state"] == "done" and not each["images"][0]["url"])
    ]  # fmt: skip
    return {
        "seconds": seconds, "clients": CLIENTS, "answers": dict(clients.answers),
        "states": dict(Counter(each["state"] for each in jobs)), "wrong": wrong,
        "lost": len(clients.accepted - {each["id"] for each in jobs}), "images_per_second": rate,
        "best_before": before, "best_after": after,
        "ratio_to_best": rate / max((before[size] + after[size]) / 2 for size in before),
        "mean_batch": batches[1] / batches[0], "timeline": timeline,
    }  # fmt: skip


def ray(seconds: float) -> dict[str, Any]:
    """``load`` on two actors of a Ray cluster on this machine, of which one is killed halfway."""
    killed: list[int] = []

    def kill(server: Server) -> None:
        processes = psutil.Process(server.process.pid).children(recursive=True)
        replicas = [each for each in processes if "ray::Replica" in " ".join(each.cmdline())]
        killed.append(len(replicas))
        replicas[0].kill()

    found = load(seconds, "--ray", "local", "--ray-cpus", "1", "--ray-actors", "2", halfway=kill)
    return {**found, "replicas_when_one_was_killed": killed[0]}


def overhead(requests_: int = 60) -> dict[str, Any]:
    """The time of a single request beyond that of its batch, on a server with nothing else to do."""
    found: dict[str, list[float]] = {"openai": [], "a1111": [], "native": []}
    with serving() as server:
        for seed in range(requests_):
            for dialect, times in found.items():
                drawing = server.metric("ssd1b_batch_generate_seconds_sum")
                begin = time.perf_counter()
                number = 3 * seed + list(found).index(dialect) + 10_000
                if dialect == "openai":
                    requests.post(f"{server.url}/v1/images/generations", json=job(number), timeout=60)
                elif dialect == "a1111":
                    body = job(number) | {"width": 128, "height": 128}
                    requests.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60)
                else:
                    id = requests.post(f"{server.url}/v1/jobs", json=job(number), timeout=60).json()["id"]
                    follow(server, requests.Session(), id)
                whole = time.perf_counter() - begin
                times.append(whole - (server.metric("ssd1b_batch_generate_seconds_sum") - drawing))
    return {
        dialect: {f"p{share}_ms": 1e3 * sorted(times)[share * len(times) // 100] for share in (50, 95)}
        for dialect, times in found.items()
    }  # fmt: skip


def cancellation(times: int = 20) -> dict[str, Any]:
    """The time from a cancellation to the end of the batch, in steps."""
    waits, chance = [], random.Random(0)
    with serving() as server:
        before = server.metrics()
        for seed in range(3):
            requests.post(f"{server.url}/v1/images/generations", json=job(50 + seed), timeout=60)
        after = server.metrics()
        name = "ssd1b_batch_generate_seconds_sum"
        step = sum(after[k] - before.get(k, 0) for k in after if k.split("{")[0] == name) / 3 / STEPS
        for seed in range(times):
            id = requests.post(
                f"{server.url}/v1/jobs", json=job(seed + 100) | {"steps": 150}, timeout=60
            ).json()["id"]
            while requests.get(f"{server.url}/v1/jobs/{id}", timeout=9).json()["state"] != "running":
                time.sleep(0.01)
            time.sleep(chance.uniform(0.2, 0.8))
            begin = time.perf_counter()
            requests.post(f"{server.url}/v1/jobs/{id}/cancel", timeout=9)
            while server.metric("ssd1b_batches_running"):
                time.sleep(0.001)
            waits.append(time.perf_counter() - begin)
    return {"step_ms": 1e3 * step, "p50_ms": 1e3 * statistics.median(waits), "max_ms": 1e3 * max(waits)}


def memory(pictures: int) -> dict[str, Any]:
    """Resident memory over many pictures."""
    found = []
    with serving() as server:
        for number in range(0, pictures, 50):
            body = job(200_000 + number, n=50) | {"steps": 2}
            requests.post(f"{server.url}/v1/images/generations", json=body, timeout=600).raise_for_status()
            found.append((number + 50, *server.memory().values()))
    return {"pictures": pictures, "megabytes": found}


def kills(times: int) -> dict[str, Any]:
    """SIGKILL at random moments under load; afterwards every job is done and no picture was made twice."""
    chance = random.Random(0)
    accepted: list[str] = []
    written: dict[str, tuple[int, int]] = {}
    twice = 0
    with serving("--max-pending", "1000") as server:
        seed = 300_000
        for _ in range(times):
            for _ in range(6):
                answer = requests.post(f"{server.url}/v1/jobs", json=job(seed, count=2), timeout=60)
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])
                seed += 10
            time.sleep(chance.uniform(0.0, 4.0))
            server.stop(signal.SIGKILL)
            for file in (server.folder / "pictures").rglob("*.png"):
                now = (file.stat().st_ino, file.stat().st_mtime_ns)
                twice += written.setdefault(file.name, now) != now
            server.begin()
            server.wait()
        begin = time.monotonic()
        while server.metric("ssd1b_images_waiting") and time.monotonic() - begin < 600:
            time.sleep(0.5)
        jobs = {each["id"]: each for each in server.jobs()}
        states = Counter(jobs[id]["state"] if id in jobs else "lost" for id in accepted)
        for file in (server.folder / "pictures").rglob("*.png"):
            now = (file.stat().st_ino, file.stat().st_mtime_ns)
            twice += written.setdefault(file.name, now) != now
        store = server.folder
        server.stop()
        checks = {
            each.name: subprocess.run(
                [sys.executable, "-c", "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute("
                 "'pragma integrity_check').fetchone()[0])", str(each)],
                capture_output=True, text=True, check=True,
            ).stdout.strip()
            for each in store.glob("*.sqlite")
        }  # fmt: skip
        server.begin()
        server.wait()
    return {
        "kills": times, "accepted": len(accepted), "states": dict(states), "written_twice": twice,
        "pictures": len(written), "integrity": checks,
    }  # fmt: skip


def plot(results: dict[str, Any], folder: Path) -> None:
    """Draw throughput and memory."""
    if {"load", "memory"} - set(results):
        return
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    times, images, _ = zip(*results["load"]["timeline"], strict=True)
    left.plot(times, images, color="#c4501b", label="served")
    best = max((a + b) / 2 for a, b in zip(results["load"]["best_before"].values(),
                                           results["load"]["best_after"].values(), strict=True))  # fmt: skip
    left.plot(times, [images[0] + best * (each - times[0]) for each in times], color="#9aa3ab", ls="--",
              label="generate, best batch")  # fmt: skip
    left.set(xlabel="seconds", ylabel="images", title=f"{CLIENTS} clients, some cancel and some leave")
    left.legend(frameon=False)
    pictures, server, workers = zip(*results["memory"]["megabytes"], strict=True)
    right.plot(pictures, workers, color="#c4501b", label="worker")
    right.plot(pictures, server, color="#3b6ea5", label="server")
    right.set(xlabel="images", ylabel="MB", title="resident memory", ylim=(0, None))
    right.legend(frameon=False)
    figure.savefig(folder / "serving.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--only", nargs="*", choices=["load", "overhead", "cancellation", "memory", "kills", "ray"]
    )
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "load": lambda: load(given.seconds), "overhead": overhead, "cancellation": cancellation,
        "memory": lambda: memory(given.pictures), "kills": lambda: kills(given.kills),
        "ray": lambda: ray(given.seconds),
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "serving.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in given.only or [name for name in parts if name != "ray"]:
        begin = time.monotonic()
        results[name] = parts[name]()
        file.write_text(json.dumps(results, indent=1))
        shown = {key: value for key, value in results[name].items() if key not in ("timeline", "megabytes")}
        print(f"{name} ({time.monotonic() - begin:.0f} s): {json.dumps(shown)}", flush=True)
    plot(results, given.out)


if __name__ == "__main__":
    main()
