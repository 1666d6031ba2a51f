"""SSD-1B and SDXL at their published size, on random weights: they load and draw, without a GPU."""

import multiprocessing
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from published_size import write_model

pytestmark = pytest.mark.full_size

MEMORY = 20e9
"""Bytes that drawing may take at most, so that a machine with 24 GB does it."""


@pytest.mark.parametrize("name", ["ssd-1b", "sdxl"])
def test_draws_two_steps_at_512(tmp_path: Path, name: str) -> None:
    model = tmp_path / name
    # In a process of its own, which gives all of its memory back.
    writer = multiprocessing.get_context("spawn").Process(target=write_model, args=(model, name))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    command = [
        sys.executable, "-m", "ssd1b", "generate", "a lighthouse at dusk",
        "--model", str(model), "--size", "512", "--steps", "2", "--seed", "1",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MEMORY
