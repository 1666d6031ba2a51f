"""Work on a Ray cluster: what ends is replaced, what it costs per cell, and how it scales.

    python benchmarks/cluster.py docs/log/cluster                       # all parts
    python benchmarks/cluster.py /tmp/cluster --only overhead scaling

Writes ``cluster.json``. The cluster is on this machine: ``ray.cluster_utils`` starts a raylet for each node.
"faults" generates with the miniature; "overhead" and "scaling" with an actor that sleeps. "million" plans,
resumes and reports a sweep of 10^6 cells.
"""

import argparse
import json
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch

from ssd1b.cluster.actor import Open, Platform
from ssd1b.cluster.connection import connected
from ssd1b.cluster.executor import ClusterExecutor
from ssd1b.cluster.options import ClusterOptions
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import Executor, Inline, JobResult, Render
from ssd1b.jobs.job import Job
from ssd1b.jobs.store import DONE, Outcome, Store
from ssd1b.lab.axes import parse_axis
from ssd1b.lab.sweep import Sweep, describe, expand
from ssd1b.pipeline import Watch
from ssd1b.settings import GenerationSettings

# Before Ray is imported, as ``ssd1b.cluster.connection`` does it.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # fmt: skip

MODEL = "mini-ssd-1b"
SWEEP = ("sweep", "a large red metal sphere on a blue background", "--axis", "guidance=1-10", "--axis",
         "steps=4,6,8,10,12", "--seeds", "6", "--device", "cpu", "--offline")  # fmt: skip
"""300 cells."""


class Nodes:
    """A cluster of nodes with one CPU each."""

    def __init__(self, count: int, cpus: float = 1) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self._count, self._cpus, self._nodes = count, cpus, list[Any]()
        self.fill()

    def fill(self) -> None:
        while len(self._nodes) < self._count:
            self._nodes.append(self._cluster.add_node(num_cpus=self._cpus, wait=False))

    def kill_one(self) -> None:
        node = self._nodes.pop(random.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self.fill()

    def close(self) -> None:
        self._cluster.shutdown()


def cells(folder: Path) -> dict[str, str]:
    if not (folder / "cells.sqlite").exists():
        return {}
    with closing(sqlite3.connect(folder / "cells.sqlite")) as database:
        return dict(database.execute("select key, digest from cells"))


def faults(drivers: int = 2, nodes: int = 3, actors: int = 10) -> dict[str, Any]:
    """Generate 300 cells while drivers, nodes and actors are killed; compare with an undisturbed run."""
    random.seed(0)
    kills = ["driver"] * drivers + ["node"] * nodes + ["actor"] * actors
    random.shuffle(kills)
    killed = dict.fromkeys(kills, 0)
    cluster = Nodes(3)
    try:
        with tempfile.TemporaryDirectory() as name:
            undisturbed, disturbed = Path(name) / "a", Path(name) / "b"
            subprocess.run([sys.executable, "-m", "ssd1b", *SWEEP, "--out", str(undisturbed)], check=True)
            command = [
                sys.executable,
                "-m",
                "ssd1b",
                *SWEEP,
                "--out",
                str(disturbed),
                "--ray",
                cluster.address,
            ]
            begin, starts = time.monotonic(), 0
            driver: subprocess.Popen[bytes] | None = None
            while True:
                if driver is None or driver.poll() is not None:
                    if driver is not None and driver.returncode == 0:
                        break
                    driver, starts = subprocess.Popen(command), starts + 1
                    have = len(cells(disturbed))
                    while driver.poll() is None and len(cells(disturbed)) <= have:  # until it generates
                        time.sleep(0.2)
                have, more = len(cells(disturbed)), random.randint(1, 12)
                while driver.poll() is None and len(cells(disturbed)) < have + more:
                    time.sleep(0.1)
                time.sleep(random.uniform(0, 1))
                if not kills or driver.poll() is not None:
                    continue
                what = kills.pop()
                if what == "driver":
                    driver.send_signal(signal.SIGKILL)
                    driver.wait()
                elif what == "node":
                    cluster.kill_one()
                elif found := list(_actors()):
                    random.choice(found).kill()
                else:
                    kills.append(what)
                    continue
                killed[what] += 1
            wanted, found = cells(undisturbed), cells(disturbed)
            return {
                "cells": len(wanted), "kept": len(found), "killed": killed, "kills_left": len(kills),
                "driver_starts": starts, "seconds": time.monotonic() - begin,
                "different": sum(found.get(key) != digest for key, digest in wanted.items()),
            }  # fmt: skip
    finally:
        cluster.close()


def _actors() -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or []).startswith("ray::Actor"):
            yield process


@contextmanager
def sleeping(seconds: float) -> Generator[Render[JobResult], None, None]:
    """Load a model that only takes the time of an image, and returns a file of 1.5 MB, as of 1024 x 1024."""
    file = random.Random(0).randbytes(1_500_000)
    outcome = Outcome(state=DONE, digest="0" * 64, passes=1.0, metrics={}, thumbnail=bytes(768))

    def render(batch: Sequence[GenerationSettings], watch: Watch) -> list[JobResult]:
        time.sleep(seconds * len(batch))
        return [JobResult(outcome, file) for _ in batch]

    yield render


def _open(seconds: float, model: str) -> Open[JobResult]:
    return partial(sleeping, seconds)


def _platform() -> Platform:
    return Platform("cpu", "float32")


def jobs(count: int) -> list[Job]:
    """Jobs of 1024 x 1024, so that none shares a batch."""
    with tempfile.TemporaryDirectory() as folder, closing(Store(Path(folder) / "none")) as store:
        what = Sweep(
            prompts=("a cube",), axes=(parse_axis(f"seed=1-{count}"),), model=MODEL,
            settings={"width": 1024, "height": 1024},
        )  # fmt: skip
        described = cache(partial(describe, file_digest=store.file_digest, offline=True))
        return list(expand(what, described, device=torch.device("cpu"), dtype=torch.float32))


def rate(count: int, executor: Executor[JobResult]) -> float:
    """Seconds for each of so many cells."""
    wanted = jobs(count)
    with tempfile.TemporaryDirectory() as folder, closing(Store(Path(folder) / "cells")) as store:
        executor.load(MODEL)
        begin = time.perf_counter()
        draw_jobs(plan(wanted, store), store, executor)
        return (time.perf_counter() - begin) / count


@contextmanager
def actors(count: int, seconds: float, address: str) -> Generator[ClusterExecutor[JobResult], None, None]:
    options = ClusterOptions(address=address, actors=count, cpus=1)
    with (
        connected(address),
        closing(ClusterExecutor(options, _platform, partial(_open, seconds))) as executor,
    ):
        executor.load(MODEL)
        while executor.started < count:
            time.sleep(0.1)
        yield executor


def overhead(count: int = 300) -> dict[str, Any]:
    """Milliseconds per cell beyond its generation, with files of 1.5 MB."""
    with closing(Inline(lambda name: sleeping(0.0))) as inline:
        alone = rate(count, inline)
    nodes = Nodes(1)
    try:
        with actors(1, 0.0, nodes.address) as one:
            remote = rate(count, one)
    finally:
        nodes.close()
    return {"cells": count, "inline_ms": alone * 1000, "one_actor_ms": remote * 1000}


def scaling(count: int = 320, most: int = 16, seconds: float = 0.5) -> dict[str, Any]:
    """Cells per second of many actors relative to one, with half a second of generation for each."""
    nodes = Nodes(most)
    try:
        with actors(1, seconds, nodes.address) as executor:
            one = 1 / rate(20, executor)
        with actors(most, seconds, nodes.address) as executor:
            many = 1 / rate(count, executor)
    finally:
        nodes.close()
    return {"seconds": seconds, "one": one, "actors": most, "many": many, "share": many / (most * one)}


class LinkingStore(Store):
    """Writes links to a few files in place of a million images."""

    _written, _source = 0, Path()

    def _write(self, key: str, outcome: Outcome, picture: bytes) -> tuple[int, int] | None:
        if self._written % 50_000 == 0:  # a file system allows some 65,000 links to a file
            self._source = self.picture(key)
            super()._write(key, outcome, picture)
        else:
            self.picture(key).parent.mkdir(exist_ok=True)
            os.link(self._source, self.picture(key))
        self._written += 1
        status = self._source.stat()
        return status.st_size, status.st_mtime_ns


def million(prompts: int = 1000, guidances: int = 10, seeds: int = 100) -> dict[str, Any]:
    """Seconds and memory to plan a sweep, to resume it when all its cells are done, and to report on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.txt").write_text("".join(f"a cube, number {n}\n" for n in range(prompts)))
        sweep = [
            "sweep", "--file", "prompts.txt", "--axis", f"guidance=1-{guidances}", "--seeds", str(seeds),
            "--device", "cpu", "--dtype", "fp32", "--offline", "--out",
        ]  # fmt: skip
        found = {
            "cells": prompts * guidances * seeds,
            "plan": measured(folder, *sweep, "new", "--dry-run"),
        }
        what = Sweep(
            prompts=tuple((folder / "prompts.txt").read_text().splitlines()), model=MODEL,
            axes=(parse_axis(f"guidance=1-{guidances}"), parse_axis(f"seed=0-{seeds - 1}")),
        )  # fmt: skip
        with closing(LinkingStore(folder / "done")) as store:
            described = cache(partial(describe, file_digest=store.file_digest, offline=True))
            jobs = expand(what, described, device=torch.device("cpu"), dtype=torch.float32)
            outcome = Outcome(
                state=DONE, digest="0" * 64, passes=8.0, metrics={"flawless": 1.0}, thumbnail=bytes(768)
            )
            while batch := list(islice(jobs, 10_000)):
                store.finish((job.key, outcome, b"an image") for job in batch)
        found["resume"] = measured(folder, *sweep, "done")
        found["report"] = measured(folder, "report", "done")
        return found


def measured(folder: Path, *arguments: str) -> dict[str, float]:
    """Run a command; return its seconds and the most memory that it used, in MB."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "ssd1b", *arguments], cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments[0]} failed")
    return {"seconds": time.perf_counter() - begin, "megabytes": usage.ru_maxrss / 1024}


def main() -> None:
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead": overhead, "scaling": scaling, "faults": faults, "million": million,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(parts), default=list(parts))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "cluster.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in given.only:
        results[name] = parts[name]()
        file.write_text(json.dumps(results, indent=1))
        print(f"{name}: {json.dumps(results[name])}", flush=True)


if __name__ == "__main__":
    main()
