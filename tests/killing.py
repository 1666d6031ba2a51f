"""Kill a training again and again, in a child process that forks its lives."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ssd1b.training import checkpoints


def kill_often(begin: Callable[[Path], object], out: Path, last: str) -> None:
    """Begin a training until it has written its last checkpoint, and kill it after each new checkpoint.

    Prints the exit code of each life. The caller has begun the training once elsewhere, so that a forked life
    imports nothing.

    Args:
        begin: begins or resumes the training in a folder.
        out: that folder.
        last: path of the last checkpoint in ``out``.
    """
    moments, fork = random.Random(0), multiprocessing.get_context("fork")
    while not (out / last).exists():
        before = _newest_step(out)
        life = fork.Process(target=_begin_in_a_group, args=(begin, out))
        life.start()
        while life.is_alive() and _newest_step(out) == before:  # each life gets somewhere
            time.sleep(0.002)
        life.join(moments.uniform(0, 0.02))
        if life.is_alive():
            assert life.pid is not None
            os.killpg(life.pid, signal.SIGKILL)
        life.join()
        sys.stdout.write(f"{life.exitcode}\n")
        sys.stdout.flush()  # else the next life, a fork, writes the line again
        assert life.exitcode in (0, -signal.SIGKILL)


def importing(test_file: str) -> str:
    """Write the Python code that imports a test file, under its own name, in a fresh process."""
    folders = [str(Path(test_file).parent), str(Path(__file__).parent)]
    return f"import sys, pathlib; sys.path[:0] = {folders!r}; import {Path(test_file).stem}"


def kills_in_child(test_file: str, call: str) -> int:
    """Call a function of a test file in a fresh process, and count the lives that were killed.

    Args:
        test_file: ``__file__`` of the test.
        call: Python code such as ``f"killed_often({str(path)!r})"``.
    """
    script = f"{importing(test_file)}; {Path(test_file).stem}.{call}"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
    }  # a forked life has none of its parent's other threads
    child = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.split().count(str(-signal.SIGKILL))


def _begin_in_a_group(begin: Callable[[Path], object], out: Path) -> None:
    os.setsid()  # processes that read ahead are killed with it
    save = checkpoints.save

    def save_and_wait(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        time.sleep(0.01)  # a fast machine would be at the end before it is killed

    checkpoints.save = save_and_wait
    begin(out)


def _newest_step(out: Path) -> str:
    return max((path.name for path in (out / "checkpoints").glob("step-*")), default="")
