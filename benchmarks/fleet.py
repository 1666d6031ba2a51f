"""Simulate ``ssd1b bulk`` on up to 10,000 GPUs: how many drivers it takes, and what failures cost.

    python benchmarks/fleet.py docs/log/cluster

A discrete-event simulation of the executor of ``ssd1b.cluster``: each driver handles one finished image after
the other, and keeps a batch running, one queued and one waiting for each of its actors. Writes ``fleet.json``
and ``fleet.png``. The measured inputs are from docs/log; the assumptions are marked.
"""

import argparse
import heapq
import json
import random
from collections import deque
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SECONDS = 0.62
"""Measured: an image of SSD-1B on an H200, compiled, 1024 x 1024, 30 steps."""

DRIVER_SECONDS = 0.0174
"""Measured: a driver's time for a finished image of 1.5 MB."""

SPREAD = 0.05
"""Assumed: relative standard deviation of the time of an image."""

GPU_HOURS_BETWEEN_FAILURES = 50_000.0
"""Assumed, after 2407.21783: 419 unexpected interruptions of 16,384 GPUs in 54 days."""

RESTART_SECONDS = 120.0
"""Assumed: until another actor has loaded and compiled the model."""

DRIVER_HOURS_BETWEEN_FAILURES = 1000.0
"""Assumed."""

GPU_HOUR = 3.5
"""Assumed: US dollars for an H200."""

MEGABYTES = 1.5
"""Assumed: a PNG of 1024 x 1024."""


class Group:
    """A driver and its GPUs.

    Args:
        gpus: number of GPUs.
        seed: of the random times.

    Attributes:
        stored: number of images that the driver has stored.
    """

    def __init__(self, gpus: int, seed: int = 0) -> None:
        self._gpus = gpus
        self._chance = random.Random(seed)
        self._clock = 0.0
        self._driver_ends = self._after(DRIVER_HOURS_BETWEEN_FAILURES)
        self.stored = 0
        self._start()

    def _after(self, hours: float) -> float:
        return self._clock + self._chance.expovariate(1 / (hours * 3600))

    def _start(self) -> None:
        """Start the driver and all GPUs."""
        self._events: list[tuple[float, int, str]] = []
        self._idle = deque(range(self._gpus))
        self._queued = [False] * self._gpus  # whether a GPU has its next image
        self._waiting = 3 * self._gpus  # images that have no GPU yet
        self._finished = 0  # images that the driver has not stored yet
        self._stores = False
        self._dispatch()

    def run(self, seconds: float) -> "Group":
        """Simulate so many seconds."""
        happens = {
            "image": self._image,
            "failure": self._failure,
            "ready": self._idle_again,
            "store": self._store,
        }
        while self._events[0][0] < seconds:
            self._clock, gpu, what = heapq.heappop(self._events)
            if self._clock > self._driver_ends:  # what it has not stored is generated again
                self._clock = self._driver_ends + RESTART_SECONDS
                self._driver_ends = self._after(DRIVER_HOURS_BETWEEN_FAILURES)
                self._start()
                continue
            happens[what](gpu)
            self._dispatch()
            if self._finished and not self._stores:
                self._stores = True
                self._later(DRIVER_SECONDS, -1, "store")
        return self

    def _later(self, seconds: float, gpu: int, what: str) -> None:
        heapq.heappush(self._events, (self._clock + seconds, gpu, what))

    def _generate(self, gpu: int) -> None:
        needed = max(0.0, self._chance.gauss(SECONDS, SECONDS * SPREAD))
        fails = self._after(GPU_HOURS_BETWEEN_FAILURES) - self._clock
        self._later(min(needed, fails), gpu, "failure" if fails < needed else "image")

    def _image(self, gpu: int) -> None:
        self._finished += 1
        if self._queued[gpu]:
            self._queued[gpu] = False
            self._generate(gpu)
        else:
            self._idle.append(gpu)

    def _failure(self, gpu: int) -> None:
        self._waiting += 1 + self._queued[gpu]
        self._queued[gpu] = False
        self._later(RESTART_SECONDS, gpu, "ready")

    def _idle_again(self, gpu: int) -> None:
        self._idle.append(gpu)

    def _store(self, gpu: int) -> None:
        self._stores = False
        self._finished -= 1
        self.stored += 1
        self._waiting += 1

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            self._waiting -= 1
            self._generate(self._idle.popleft())
        for gpu, queued in enumerate(self._queued):
            if self._waiting > self._gpus and not queued:
                self._queued[gpu] = True
                self._waiting -= 1


def utilisation(gpus: int, seconds: float) -> float:
    """The share of the GPUs' time that ends in stored images."""
    return Group(gpus).run(seconds).stored * SECONDS / (gpus * seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    sizes = [1, 2, 4, 8, 16, 24, 32, 36, 40, 48, 64, 128]
    shares = {gpus: utilisation(gpus, max(600.0, 20_000.0 / gpus)) for gpus in sizes}
    most = max(gpus for gpus, share in shares.items() if share >= 0.95)
    plans = []
    for gpus in (8, 100, 1000, 10_000):
        drivers = ceil(gpus / most)
        share = shares[most] if drivers > 1 else utilisation(gpus, 600.0)
        rate = gpus * share / SECONDS
        plans.append({
            "gpus": gpus, "drivers": drivers, "utilisation": share, "images_per_second": rate,
            "hours_per_million": 1e6 / rate / 3600, "gigabytes_per_second": rate * MEGABYTES / 1000,
            "dollars_per_million": 1e6 * SECONDS / share / 3600 * GPU_HOUR,
        })  # fmt: skip
    facts: dict[str, Any] = {"utilisation": shares, "most_gpus_per_driver": most, "plans": plans}
    (given.out / "fleet.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts, indent=1))
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(shares), [100 * share for share in shares.values()], "o-")
    axes.axvline(SECONDS / DRIVER_SECONDS, color="grey", linestyle=":")
    axes.set(xlabel="GPUs of one driver", ylabel="GPU time in stored images, %", xscale="log", ylim=(0, 105))
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64, 128], labels=["1", "2", "4", "8", "16", "32", "64", "128"])
    figure.savefig(given.out / "fleet.png", dpi=150)


if __name__ == "__main__":
    main()
