"""Fake models for the actors of a cluster. Every node can import them."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lab_cells import Fake
from ssd1b.cluster.actor import Open, Platform
from ssd1b.errors import NotFoundError
from ssd1b.jobs.executor import JobResult, Render

CPU = Platform("cpu", "float32")


def on_cpu() -> Platform:
    return CPU


def on_gpu() -> Platform:
    raise NotFoundError("device 'cuda' is not in this machine")


def on_anything() -> Platform:
    """Another number format on each node."""
    return Platform("cpu", f"float{os.getpid()}")


@contextmanager
def fake(log: Path, seconds: float, name: str) -> Iterator[Render[JobResult]]:
    """Load a model that takes some time for an image, and one named "gone" not at all.

    Each actor appends its process's id to ``log``.
    """
    if name == "gone":
        raise NotFoundError("unknown model 'gone'")
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    drawing = Fake(seconds=seconds)

    def render(batch, watch):
        if any(settings.prompt == "a deadly one" for settings in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return drawing(batch)

    yield render


def opener(log: Path, seconds: float = 0.0):
    def open_model(name: str) -> Open[JobResult]:
        return partial(fake, log, seconds, name)

    return open_model


def kill_one(log: Path) -> None:
    """Kill one of the actors at random, if it lives."""
    try:
        os.kill(int(random.choice(log.read_text().split())), signal.SIGKILL)
    except (IndexError, OSError):
        pass
