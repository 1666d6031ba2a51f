"""``ssd1b models`` and ``ssd1b tabletop``."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd1b.cli.table import columns
from ssd1b.numerals import byte_size
from ssd1b.saving import MARKS
from ssd1b.tabletop.miniature import assemble
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import scene
from ssd1b.weights import hub


@pytest.fixture
def two_models(monkeypatch):
    listed = [
        hub.AvailableModel(name="mini-sdxl", source="built-in", ready=True),
        hub.AvailableModel(name="sdxl", source="stabilityai/stable-diffusion-xl-base-1.0", ready=False),
    ]
    monkeypatch.setattr(hub, "available_models", lambda: listed)


def test_models_as_text(run, two_models):
    assert run("models").out.splitlines() == [
        "NAME       SOURCE                                    STATE",
        "mini-sdxl  built-in                                  ready",
        "sdxl       stabilityai/stable-diffusion-xl-base-1.0  not downloaded",
    ]


def test_models_as_json(run, two_models):
    lines = [json.loads(line) for line in run("models", "--json").out.splitlines()]
    assert lines[0] == {"name": "mini-sdxl", "source": "built-in", "ready": True}
    assert len(lines) == 2


def test_render_writes_pictures_with_their_captions(run, tmp_path):
    result = run("tabletop", "render", "--count", 2, "--seed", 5, "--split", "held_out", "--out", "data")
    assert (result.code, result.out, result.err) == (0, "data\n", "")
    assert len(list((tmp_path / "data").iterdir())) == 4
    for index in range(2):
        shown = scene(5, index, split="held_out")
        stem = tmp_path / f"data/held_out-5-{index:06d}"
        assert (np.asarray(Image.open(stem.with_suffix(".png"))) == render(shown)).all()
        assert stem.with_suffix(".txt").read_text() == full_caption(shown) + "\n"


def test_render_a_subject(run, tmp_path):
    result = run("tabletop", "render", "--count", 2, "--subject", "octahedron", "--out", "data")
    assert result.code == 0, result.err
    texts = sorted((tmp_path / "data").glob("octahedron-0-*.txt"))
    assert len(texts) == 2
    assert all(" octahedron on a" in each.read_text() for each in texts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--subject", "octaheron"], "unknown subject 'octaheron': did you mean 'octahedron'?"),
        (["--subject", "banded", "--world", "rich"], "subject needs the split train and the world plain"),
        (["--subject", "banded", "--split", "held_out"], "subject needs the split train"),
    ],
)
def test_wrong_subjects_write_nothing(run, tmp_path, options, words):
    result = run("tabletop", "render", *options, "--out", "data")
    assert result.code == 2
    assert words in result.err
    assert not (tmp_path / "data").exists()


def test_sheet_shows_every_picture(run, tmp_path):
    result = run("tabletop", "show", "--count", 3, "--seed", 5, "--out", "sheets/all.png")
    assert (result.code, result.out) == (0, "sheets/all.png\n")
    sheet = np.asarray(Image.open(tmp_path / "sheets/all.png"))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (128, 128, 3))
    for index in range(3):
        picture = render(scene(5, index))
        corners = np.argwhere((sheet[: windows.shape[0], : windows.shape[1]] == picture[0, 0]).all(axis=-1))
        assert any((windows[top, left, 0] == picture).all() for top, left in corners)


def test_the_judge_is_examined_with_spoiled_pictures_and_without(run, tmp_path):
    result = run("tabletop", "examine", "--count", 6, "--through", "mini-sdxl", "--out", "found")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "found/examination.json").read_text())
    views = ["renders", "renders, none spoiled", "through mini-sdxl", "through mini-sdxl, none spoiled"]
    assert list(found) == views
    assert found["renders, none spoiled"]["background"]["mean"] == 1
    assert result.out.splitlines()[0].split("  ")[-1].strip() == views[-1]
    names = {path.name for path in (tmp_path / "found").iterdir()}
    assert names - {MARKS} == {"examination.json", "calibration.png", "confusion-0.png", "confusion-1.png"}


def test_train_hands_its_options_on(run, monkeypatch):
    told = {}

    def train_part(part: str, run: Path, *, notify: Callable[[str], None], **options: object) -> Path:
        notify("a message")
        told.update(options)
        return run / part

    monkeypatch.setattr(assemble, "train_part", train_part)
    options = ["--from", "mini-sdxl", "--steps", 5, "--seed", 8, "--resume"]
    result = run("tabletop", "train", "vae", "--out", "mini", *options)
    assert (result.code, result.out) == (0, "mini/vae\n") and "a message" in result.err
    assert (told.pop("start") / "model_index.json").exists()
    expected = {"steps": 5, "batch_size": None, "seed": 8, "world": "plain", "resume": True, "device": "cpu"}
    assert told == expected


def test_the_image_encoder_goes_on_with_its_own_run_alone(run):
    result = run("tabletop", "train", "image-encoder", "--out", "mini", "--from", "mini-sdxl")
    assert result.code == 2 and "leave --from out" in result.err


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (5_135_000_000, "5.13 GB"),
        (10**16, "1e+04 TB"),
    ],
)
def test_byte_size(count, text):
    assert byte_size(count) == text


def test_columns_are_aligned_left_or_right():
    assert columns([("a", "1", "x"), ("bcd", "22", "")], right=(1,)) == "a     1  x\nbcd  22"
