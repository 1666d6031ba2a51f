"""An evaluation has the same images and figures on a cluster, whatever ends there."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cluster_fakes import colored, kill_one, on_cpu, timed_opener
from ssd1b.cluster.connection import connected
from ssd1b.cluster.executor import ClusterExecutor
from ssd1b.cluster.options import ClusterOptions
from ssd1b.errors import InputError
from ssd1b.evaluate.drawing import Drawn
from ssd1b.jobs.captions import Task, draw_captions
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import scene

pytestmark = pytest.mark.enable_socket

ALIKE = ("--device", "cpu", "--dtype", "fp32", "--threads", 1, "--offline", "--steps", 1)


@pytest.fixture
def both(run, nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Evaluate on this machine and on the cluster; return both results, without seconds."""

    def evaluate(*arguments: object) -> list[dict]:
        found = []
        for out, options in (("here", ()), ("there", ("--ray", nodes.address))):
            done = run("evaluate", *arguments, *ALIKE, *options, "--out", out, "--json")
            assert done.code == 0, done.err
            monkeypatch.setattr(Pipeline, "draw", None)  # actors are other processes
            facts = json.loads(done.out)
            assert all(model.pop("seconds") > 0 for model in facts["models"])
            sheets = [path.read_bytes() for path in sorted((tmp_path / out).glob("sheet-*.png"))]
            found.append({**facts, "sheets": sheets})
        return found

    return evaluate


def test_a_cluster_finds_what_one_machine_finds(both) -> None:
    here, there = both("--captions", 10, "--versus", "mini-sdxl")
    assert here == there
    assert len(there["models"]) == len(there["sheets"]) == 2 and there["difference"]


def test_images_of_a_folder_are_the_same_on_a_cluster(both, tiny_model: Path, tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for index in range(3):
        Image.fromarray(render(scene(9, index))).save(data / f"{index}.png")
        (data / f"{index}.txt").write_text(f"caption {index}")
    here, there = both("--data", data, "--model", tiny_model, "--seeds", 2)
    assert here == there
    assert there["models"][0]["pictures"] == 6


@contextmanager
def executor(nodes, log: Path, seconds: float = 0.0) -> Iterator[ClusterExecutor[Drawn]]:
    options = ClusterOptions(address=nodes.address)
    with (
        connected(nodes.address),
        closing(ClusterExecutor(options, on_cpu, timed_opener(log, seconds))) as made,
    ):
        yield made


def drawn(runner: ClusterExecutor[Drawn], tasks: list[Task]) -> list[Drawn]:
    return list(draw_captions(Model.find("mini-ssd-1b", offline=True), runner, tasks, batch_size=4))


def test_an_actor_that_is_killed_costs_its_batch_only(nodes, tmp_path: Path) -> None:
    log = tmp_path / "actors.log"
    tasks = [("a cube", seed) for seed in range(96)]
    with executor(nodes, log, 0.2) as cluster, ThreadPoolExecutor(1) as thread:
        found = thread.submit(drawn, cluster, tasks)
        while not log.exists():
            time.sleep(0.1)
        time.sleep(1)
        kill_one(log)
        assert not found.done()
        assert found.result() == [colored(seed) for _, seed in tasks]
    assert len(log.read_text().split()) > 3, "an actor was replaced"


def test_a_batch_that_ends_every_actor_ends_the_evaluation_in_one_line(nodes, tmp_path: Path) -> None:
    message = r"^5 actors ended while they generated this batch: [^\n]+$"
    with executor(nodes, tmp_path / "actors.log") as cluster, pytest.raises(InputError, match=message):
        drawn(cluster, [("a cube", 1), ("a deadly one", 2)])
