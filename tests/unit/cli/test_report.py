"""``ssd1b report``: what it writes, and what it refuses."""

import sys

import pytest

from ssd1b.extras import install

PROMPT = "a cube"


@pytest.fixture
def cells(run, tiny_model):
    """A folder with a sweep of four cells."""
    settings = ("--model", tiny_model, "--steps", 1, "--seeds", 2, "--out", "cells")
    assert run("sweep", PROMPT, "--axis", "guidance=2,5", *settings).code == 0
    return "cells"


def test_page_tables_and_sheets(run, cells, tmp_path):
    done = run("report", cells)
    assert (done.code, done.err) == (0, ""), done.err
    names = ["report.html", "cells.csv", "cells.parquet", "sheet-0.png"]
    assert done.out.splitlines() == [f"cells/report/{name}" for name in names]
    assert all((tmp_path / "cells/report" / name).stat().st_size > 100 for name in names)
    assert run("report", cells, "--out", "elsewhere", "--metric", "sharpness").code == 0
    assert (tmp_path / "elsewhere/report.html").exists()


def test_sweeps_are_listed(run, cells):
    lines = run("report", cells, "--list").out.splitlines()
    assert len(lines) == 2 and lines[1].split()[1] == "4"
    assert "prompt (1), seed (2), guidance (2)" in lines[1]
    assert run("report", cells, "--sweep", lines[1].split()[0][:5]).code == 0


def test_without_pyarrow_the_rest_is_written(run, cells, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = run("report", cells)
    assert done.code == 0 and "cells.parquet" not in done.out
    assert done.err == f"cells.parquet is omitted because it needs pyarrow: {install(['pyarrow'])}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["nothing holds no sweep", "ssd1b sweep"]),
        (["cells", "--metric", "sharpnes"], ["unknown metric 'sharpnes'", "did you mean 'sharpness'"]),
        (["cells", "--metric", "right"], ["metric 'right' was not measured", "needs a model of Tabletop"]),
        (["cells", "--sweep", "zzz"], ["unknown sweep 'zzz'"]),
    ],
)
def test_wrong_calls(run, cells, tmp_path, arguments, words):
    done = run("report", *arguments)
    assert done.code == 2 and done.out == ""
    assert all(word in done.err for word in words), done.err
    assert not (tmp_path / "nothing").exists()
