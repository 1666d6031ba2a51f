"""``--control`` from the command line to an image, its recipe, and the same image again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd1b.controls import BUILT_IN, STEMS
from ssd1b.images import read_recipe
from ssd1b.inputs import InputFile

DRAW = (
    "generate",
    "a small red rubber cone on a white background",
    "--seed",
    3,
    "--steps",
    2,
    "--dtype",
    "fp32",
)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.full((128, 128, 3), 220, np.uint8)
    pixels[40:90, 50:100] = (200, 20, 20)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_an_image_that_follows_edges_and_the_same_again(run, tmp_path, photo, image_at):
    made = run(*DRAW, "--control", "mini-control:photo.png:0.9:0:0.8:canny", "--out", "a.png")
    assert made.code == 0, made.err
    (control,) = read_recipe(tmp_path / "a.png").settings.controls
    network = BUILT_IN["mini-control"] / STEMS[0]
    assert control.model == InputFile.of(network, most=2**30) and control.picture.path == str(photo)
    assert (control.scale, control.end, control.preprocess) == (0.9, 0.8, "canny")
    assert run(*DRAW, "--out", "b.png").code == 0
    assert image_at(tmp_path / "a.png").tobytes() != image_at(tmp_path / "b.png").tobytes()
    told = run("inspect", "a.png").out
    assert f"mini-control:{photo}:0.9:0:0.8:canny" in told and "--control mini-control:" in told
    (tmp_path / "moved").mkdir()
    shutil.move(photo, tmp_path / "moved/photo.png")
    gone = run("rerun", "a.png", "--out", "c.png")
    assert gone.code == 2 and "control picture photo.png" in gone.err and "--inputs" in gone.err
    again = run("rerun", "a.png", "--inputs", "moved", "--out", "c.png")
    assert again.err == "bit-equal: every pixel is the same\n"


def test_what_is_built_in_fits_both_miniatures(run):
    told = run("inspect", "mini-control").out.split()
    for name in ("mini-sdxl", "mini-ssd-1b"):
        assert told[told.index(name) + 1] == "yes"
    assert told[told.index("ssd-1b") + 1] == "no"


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("mini-control", "write MODEL:PICTURE"),
        ("mini-control:nowhere.png", "nowhere.png"),
        ("mini-control:photo.png:cany", "did you mean 'canny'"),
        ("mini-contro:photo.png", "did you mean 'mini-control'"),
        ("photo.png:photo.png", "photo.png"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(run, tmp_path, photo, control, message):
    result = run(*DRAW, "--control", control, "--out", "a.png")
    assert result.code == 2 and message in result.err.splitlines()[-1]
    assert not (tmp_path / "a.png").exists()


def test_a_sweep_of_scales(run, photo):
    arguments = ("--control", "mini-control:photo.png:canny", "--axis", "control-scale=0,0.5,1", "--dry-run")
    planned = run("sweep", "a cube", *arguments, "--out", "lab")
    assert planned.code == 0 and planned.err.startswith("3 cells")
    wrong = run("sweep", "a cube", "--axis", "control-scale=1", "--dry-run", "--out", "lab")
    assert wrong.code == 2 and "there is no control: give one with --control" in wrong.err
