"""Simulate a driver of ``ssd1b bulk --ray``: how many GPUs it can feed.

    python benchmarks/fleet.py docs/log/cluster

A discrete-event simulation of the executor of ``ssd1b.cluster``, without failures: the driver handles one
finished image after the other, and keeps an image running, one queued and one waiting for each of its actors.
Writes ``fleet.json`` and ``fleet.png``. The times are from docs/log; the assumptions are marked.
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

DRIVER_SECONDS = 0.0151
"""Measured: a driver's time for a finished image of 1.5 MB."""

SPREAD = 0.05
"""Assumed: relative standard deviation of the time of an image."""

GPU_HOUR = 3.5
"""Assumed: US dollars for an H200."""

MEGABYTES = 1.5
"""Assumed: a PNG of 1024 x 1024."""


class Driver:
    """A driver and its GPUs.

    Args:
        gpus: number of GPUs.

    Attributes:
        stored: number of images that it has stored.
    """

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._chance = random.Random(0)
        self._clock = 0.0
        self._events: list[tuple[float, int]] = []  # a GPU finishes an image, or the driver (-1) stores one
        self._idle = deque(range(gpus))
        self._queued = [False] * gpus  # whether a GPU has its next image
        self._waiting = 3 * gpus  # images that have no GPU yet
        self._finished = 0  # images that are not stored yet
        self.stored = 0
        self._dispatch()

    def run(self, seconds: float) -> None:
        """Simulate so many seconds."""
        while self._events[0][0] < seconds:
            self._clock, gpu = heapq.heappop(self._events)
            if gpu >= 0:
                self._finish(gpu)
            else:
                self._finished -= 1
                self.stored += 1
                self._waiting += 1
            if self._finished and (gpu < 0 or self._finished == 1):  # it is free
                heapq.heappush(self._events, (self._clock + DRIVER_SECONDS, -1))
            self._dispatch()

    def _generate(self, gpu: int) -> None:
        needed = max(0.0, self._chance.gauss(SECONDS, SECONDS * SPREAD))
        heapq.heappush(self._events, (self._clock + needed, gpu))

    def _finish(self, gpu: int) -> None:
        self._finished += 1
        if self._queued[gpu]:
            self._queued[gpu] = False
            self._generate(gpu)
        else:
            self._idle.append(gpu)

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
    driver = Driver(gpus)
    driver.run(seconds)
    return driver.stored * SECONDS / (gpus * seconds)


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
