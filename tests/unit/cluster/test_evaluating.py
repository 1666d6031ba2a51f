"""An evaluation has the same images and figures on a cluster."""

import json
from pathlib import Path

import pytest

from ssd1b.pipeline import Pipeline

ALIKE = ("--device", "cpu", "--dtype", "fp32", "--threads", 1, "--offline", "--steps", 1)


@pytest.mark.enable_socket
def test_a_cluster_finds_what_one_machine_finds(run, nodes, tmp_path: Path, monkeypatch) -> None:
    found = []
    for out, options in (("here", ()), ("there", ("--ray", nodes.address))):
        asked = ("--captions", 4, "--seeds", 2, "--versus", "mini-sdxl")
        done = run("evaluate", *asked, *ALIKE, *options, "--out", out, "--json")
        assert done.code == 0, done.err
        monkeypatch.setattr(Pipeline, "draw", None)  # actors are other processes
        facts = json.loads(done.out)
        assert all(model.pop("seconds") > 0 for model in facts["models"])
        sheets = [path.read_bytes() for path in sorted((tmp_path / out).glob("sheet-*.png"))]
        found.append({**facts, "sheets": sheets})
    here, there = found
    assert here == there
    assert len(there["models"]) == len(there["sheets"]) == 2 and there["difference"]
