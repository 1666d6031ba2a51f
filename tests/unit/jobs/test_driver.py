"""Jobs are drawn once, whoever asks and whatever is killed in between."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from lab_cells import FIVE_HUNDRED, Fake, run, sweep, wanted
from rounds import rounds
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import Inline
from ssd1b.jobs.job import batches
from ssd1b.jobs.store import DONE, FAILED, Store

CHILD = Path(__file__).parents[2] / "lab_cells.py"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "cells")) as opened:
        yield opened


def test_pictures_with_the_same_steps_and_guidance_are_drawn_together() -> None:
    found = wanted(sweep("guidance=2,5", "seed=1-20", prompts=("a cube", "a cone")))
    shared = [[(c.settings.guidance_scale, c.settings.width) for c in batch] for batch in batches(found)]
    assert [(len(batch), *set(batch)) for batch in shared] == [
        (32, (2.0, 64)), (32, (5.0, 64)), (8, (2.0, 64)), (8, (5.0, 64))
    ]  # fmt: skip
    large = [cell._replace(settings=replace(cell.settings, width=1024, height=1024)) for cell in found]
    assert [len(batch) for batch in batches(large)] == [1] * 80


def test_the_expected_cost_of_a_cell_is_that_of_its_passes() -> None:
    costs = {name: [] for name in ("euler", "heun")}
    for cell in wanted(sweep("sampler=euler,heun", "guidance=1,5", "steps=1,4")):
        costs[cell.settings.sampler].append(cell.cost / 64**2)
    assert costs == {"euler": [1, 2, 4, 8], "heun": [1, 2, 7, 14]}


def test_failures_are_written_down_and_drawn_again_when_asked(store: Store) -> None:
    what = sweep("seed=1,2", prompts=("a broken one", "a cube"))
    fake = Fake()
    found = run(store, what, fake)
    outcomes = store.outcomes(cell.key for cell in found)
    assert [outcomes[cell.key].state for cell in found] == [FAILED, FAILED, DONE, DONE]
    assert outcomes[found[0].key].error == "the picture is no numbers"
    assert not store.picture(found[0].key).exists()
    run(store, what, fake)
    assert fake.drawn == 4
    run(store, what, fake, retry=True)
    assert fake.drawn == 6


def test_a_model_of_which_everything_is_there_is_not_loaded(store: Store) -> None:
    found = run(store, sweep("seed=1"), Fake())

    def prepare(name: str) -> NoReturn:
        raise AssertionError("loaded")

    draw_jobs(plan(found, store), store, Inline(prepare))


def hashes(folder: Path) -> dict[str, str | None]:
    with closing(Store(folder)) as opened:
        return {
            key: each.digest
            for key, each in opened.outcomes(c.key for c in wanted(sweep(*FIVE_HUNDRED))).items()
        }


def child(folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, str(CHILD), str(folder), str(log)], env={**os.environ})


def test_a_sweep_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    rng = random.Random(0)
    log = tmp_path / "log"
    kills, tries = 0, rounds(6, 20)
    for _ in range(tries):
        process = child(tmp_path / "killed", log)
        before = log.stat().st_size if log.exists() else 0
        while process.poll() is None and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= tries / 2
    assert child(tmp_path / "killed", log).wait() == 0
    drawn = Counter(log.read_text().splitlines())
    assert len(drawn) == 500
    assert drawn.total() <= 500 + 10 * kills, "no more than the batch in work is lost with each kill"

    with closing(Store(tmp_path / "whole")) as whole:
        run(whole, sweep(*FIVE_HUNDRED), Fake())
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert len([path for path in (tmp_path / "killed/pictures").rglob("*") if path.is_file()]) == 500
    assert not list((tmp_path / "killed/workers").iterdir())


def test_two_processes_in_one_folder_share_the_cells(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [child(tmp_path / "cells", log) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    drawn = log.read_text().splitlines()
    assert len(drawn) == len(set(drawn)) == 500
    assert not list((tmp_path / "cells/workers").iterdir())
