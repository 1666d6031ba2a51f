"""An evaluation has the same images and figures on a cluster."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import scene

pytestmark = pytest.mark.enable_socket

ALIKE = ("--device", "cpu", "--dtype", "fp32", "--threads", 1, "--offline", "--steps", 1, "--seeds", 2)


@pytest.fixture
def evaluate(run, nodes, tmp_path: Path, monkeypatch) -> Callable[..., dict]:
    """Evaluate on this machine and on the cluster, compare, and return the result without seconds."""

    def compare(*arguments: object) -> dict:
        found = []
        for out, options in (("here", ()), ("there", ("--ray", nodes.address))):
            done = run("evaluate", *arguments, *ALIKE, *options, "--out", out, "--json")
            assert done.code == 0, done.err
            monkeypatch.setattr(Pipeline, "draw", None)  # actors are other processes
            facts = json.loads(done.out)
            assert all(model.pop("seconds") > 0 for model in facts["models"])
            sheets = [path.read_bytes() for path in sorted((tmp_path / out).glob("sheet-*.png"))]
            found.append({**facts, "sheets": sheets})
        assert found[0] == found[1]
        return found[1]

    return compare


def test_a_cluster_finds_what_one_machine_finds(evaluate) -> None:
    found = evaluate("--captions", 4, "--versus", "mini-sdxl")
    assert len(found["models"]) == len(found["sheets"]) == 2 and found["difference"]


def test_images_of_a_folder_and_a_model_by_its_path(evaluate, tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index in range(3):
        Image.fromarray(render(scene(9, index))).save(data / f"{index}.png")
        (data / f"{index}.txt").write_text(f"caption {index}")
    found = evaluate("--data", data, "--model", tiny_model)
    assert found["models"][0]["pictures"] == 6
