"""The report: whole in one file, inert, and saying of each cell how to draw it again."""

import csv
import json
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from lab_cells import Fake, run, sweep, wanted
from ssd1b.command_line import command_line
from ssd1b.errors import InputError
from ssd1b.jobs.store import Store
from ssd1b.lab import report
from ssd1b.lab.export import contact_sheets, preset_text, write_csv, write_parquet
from ssd1b.lab.report import write_page
from ssd1b.lab.results import load_results
from ssd1b.lab.sweep import definition

EVIL = "</script><img src=x onerror=alert(1)> & $x_{1}$ =1+1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "cells")) as opened:
        yield opened


class Elements(HTMLParser):
    """Every element with its attributes, and what the data element holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][1].get("id") == "data":
            self.data += data


def page(store: Store, tmp_path: Path, **how: str) -> str:
    out = tmp_path / "report" / "report.html"
    write_page(load_results(store), store, out, **how)
    return out.read_text()


def test_the_page_needs_nothing_from_elsewhere(store: Store, tmp_path: Path) -> None:
    run(store, sweep("guidance=2,5", "steps=3,4", "seed=1,2"), Fake())
    text = page(store, tmp_path, metric="red")
    elements = Elements(text)
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "default-src 'none'" in text
    told = json.loads(elements.data)
    assert [axis["name"] for axis in told["axes"]] == ["prompt", "seed", "steps", "guidance"]
    assert len(told["cells"]) == 8
    assert all(cell["picture"].startswith("data:image/webp;base64,") for cell in told["cells"])
    assert text.count("<svg") == 3, "steps, guidance, quality against passes"


def test_prompts_are_text(store: Store, tmp_path: Path) -> None:
    run(store, sweep("negative=none||<b>bold</b> $_$", "seed=1,2", prompts=(EVIL,)), Fake())
    text = page(store, tmp_path)
    elements = Elements(text)
    assert not [tag for tag, attributes in elements.found if tag == "b" or attributes.get("onerror")]
    assert EVIL in json.loads(elements.data)["cells"][0]["command"].replace("'\"'\"'", "'")
    results = load_results(store)
    write_csv(results, store, tmp_path / "cells.csv")
    with (tmp_path / "cells.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["prompt"] == EVIL


def test_a_spreadsheet_sees_no_formula(store: Store, tmp_path: Path) -> None:
    run(store, sweep("seed=1,2", prompts=("=1+1",)), Fake())
    write_csv(load_results(store), store, tmp_path / "cells.csv")
    with (tmp_path / "cells.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["prompt"] == "'=1+1"


def test_tables_have_every_cell(store: Store, tmp_path: Path) -> None:
    what = sweep("guidance=2,5", "seed=1,2", prompts=("a cube", "a broken one"))
    run(store, what, Fake())
    results = load_results(store)
    write_csv(results, store, tmp_path / "cells.csv")
    write_parquet(results, store, tmp_path / "cells.parquet")
    with (tmp_path / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "cells.parquet").to_pylist()
    assert (
        [row["key"] for row in rows] == [row["key"] for row in table] == [cell.key for cell in wanted(what)]
    )
    assert [row["red"] for row in table][:4] == [1.0, 1.0, 2.0, 2.0] and table[-1]["red"] is None
    assert (store.folder / rows[0]["picture"]).exists() and rows[-1]["picture"] == ""


def test_commands_and_presets_draw_a_cell_again() -> None:
    axes = ("negative=it's || none", "guidance-interval=0.2-0.8", "size=64x128", "steps=3", "seed=7")
    what = sweep(*axes, prompts=("a 'red' cube",))
    chosen = what.request([0] * len(what.all_axes))
    assert shlex.split(command_line(chosen.prompt, chosen.settings, model=chosen.model)) == [
        "ssd1b", "generate", "--size", "64x128", "--negative", "it's", "--guidance-interval", "0.2", "0.8",
        "--steps", "3", "--seed", "7", "--model", "fake", "a 'red' cube",
    ]  # fmt: skip
    preset = tomllib.loads(preset_text(chosen))["settings"]
    assert preset == {
        "negative_prompt": "it's", "guidance_interval": [0.2, 0.8], "width": 64, "height": 128, "steps": 3,
    }  # fmt: skip


def test_an_unfinished_sweep_and_failures_are_told(store: Store, tmp_path: Path) -> None:
    run(store, sweep("seed=1,2", prompts=("a cube", "a broken one")), Fake())
    longer = sweep("seed=1,2,3", prompts=("a cube", "a broken one"))
    keys = [cell.key for cell in wanted(longer)]
    store.record("longer", definition(longer), list(zip(keys, longer.places, strict=True)))
    text = page(store, tmp_path)
    assert "2 of 6 cells are missing" in text and "2 images failed: the picture is no numbers" in text
    assert [cell["picture"] is None for cell in json.loads(Elements(text).data)["cells"]] == [
        False, False, True, True, True, True
    ]  # fmt: skip


def test_more_pictures_than_a_page_holds(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_PICTURES", 3)
    run(store, sweep("seed=1-5"), Fake())
    text = page(store, tmp_path)
    assert "This page contains 3 images; the others are in" in text
    assert [cell is None for cell in json.loads(Elements(text).data)["cells"]] == [False] * 3 + [True] * 2


def test_a_metric_that_nobody_measured(store: Store, tmp_path: Path) -> None:
    run(store, sweep("seed=1,2"), Fake())
    with pytest.raises(InputError, match="unknown metric 'reed': did you mean 'red'"):
        page(store, tmp_path, metric="reed")
    assert not (tmp_path / "report").exists() or not list((tmp_path / "report").iterdir())


def test_contact_sheets_show_two_axes(store: Store) -> None:
    run(store, sweep("guidance=2,5", "steps=3,4,5", "seed=1,2", prompts=("a cube", "a cone")), Fake())
    sheets = list(contact_sheets(load_results(store), store))
    assert len(sheets) == 2
    across, down = 2, 3
    pixels = np.asarray(sheets[0])
    colors = {tuple(each) for each in pixels[-3 * 192 + 96 :: 192, -2 * 192 + 96 :: 192].reshape(-1, 3)}
    assert len(colors) == across * down
