"""``--from`` and ``--mask`` on the command line, and pictures that ``rerun`` needs again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd1b.decoding import picture_size, read_source
from ssd1b.images import read_recipe
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import Recipe


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    levels = np.random.default_rng(2).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "photo.png")
    mask = Image.new("L", (72, 64))
    mask.paste(255, (0, 0, 36, 64))
    mask.save(tmp_path / "left.png")
    read_source.cache_clear()
    picture_size.cache_clear()


@pytest.fixture
def drawn(run, tiny_model, tmp_path):
    """An image generated from both files."""
    result = run(
        "generate", "a red cube", "--model", tiny_model, "--seed", 7, "--dtype", "fp32", "--steps", 4,
        "--from", "photo.png", "--mask", "left.png", "--strength", 0.5,
    )  # fmt: skip
    assert result.code == 0, result.err
    return tmp_path / result.out.strip()


def test_an_image_gets_its_pictures_size_and_recipe(drawn, image_at, tmp_path):
    assert image_at(drawn).size == (72, 64)
    recipe = read_recipe(drawn)
    assert isinstance(recipe, Recipe) and recipe.settings.start == (4, 2, False)
    assert recipe.settings.init_image is not None
    assert recipe.settings.init_image.path == str(tmp_path / "photo.png")
    right = (36, 0, 72, 64)
    assert image_at(drawn).crop(right).tobytes() == image_at(tmp_path / "photo.png").crop(right).tobytes()


def test_rerun_finds_the_pictures_where_they_were(drawn, run):
    result = run("rerun", drawn, "--trust-recipe")
    assert result.code == 0, result.err
    assert result.err == "bit-equal: every pixel is the same\n"


@pytest.mark.parametrize("place", ["beside", "named"])
def test_rerun_finds_pictures_that_were_moved(drawn, run, tmp_path, place):
    folder = drawn.parent if place == "beside" else tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    for name in ("photo.png", "left.png"):
        shutil.move(tmp_path / name, folder / name)
    result = run("rerun", drawn, "--trust-recipe", *(["--inputs", folder] if place == "named" else []))
    assert result.code == 0, result.err
    assert result.err.endswith("bit-equal: every pixel is the same\n")


def test_rerun_names_a_picture_that_is_missing_or_has_changed(drawn, run, tmp_path):
    Image.new("RGB", (72, 64)).save(tmp_path / "photo.png")
    (tmp_path / "left.png").rename(tmp_path / "right.png")
    result = run("rerun", drawn, "--trust-recipe")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: init_image photo.png (SHA-256 ") and result.err.count("\n") == 1
    assert "name its folder with --inputs" in result.err


def test_inspect_prints_the_command(drawn, run, tmp_path):
    text = run("inspect", drawn).out
    assert "ssd1b rerun" in text, "the model is no known one"
    assert str(tmp_path / "photo.png") in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", "missing.png"], "missing.png"),
        (["--from", "."], "it is a folder, not a file"),
        (["--from", "note.txt"], "note.txt: not a readable PNG, JPEG or WebP"),
        (["--from", "photo.png", "--strength", "2"], "strength is 2.0: it must be a number from 0 to 1"),
        (["--from", "photo.png", "--strength", "nan"], "'nan' is not a number"),
        (["--from", "photo.png", "--strength", "0.01"], "of 4 steps none is left to run"),
        (["--strength", "0.5"], "strength needs init_image (--from)"),
        (["--mask", "left.png"], "mask needs init_image (--from)"),
        (["--from", "photo.png", "--resize-mode", "fit"], "unknown resize mode 'fit'"),
        (["--from", "photo.png", "--mask", "square.png"], "mask is 64x64 and the picture 72x64"),
        (["--from", "photo.png", "--mask", "black.png"], "the mask is black everywhere"),
        (["--timesteps", "1000,500,300,100"], "timesteps begin with 1000: the model's are 0 to 999"),
    ],
)
def test_errors_are_one_line_before_weights_are_read(run, tiny_model, tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(Pipeline, "load", None)
    (tmp_path / "note.txt").write_text("no picture")
    Image.new("L", (64, 64), 255).save(tmp_path / "square.png")
    Image.new("L", (72, 64)).save(tmp_path / "black.png")
    result = run("generate", "a red cube", "--model", tiny_model, "--steps", 4, *options)
    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[-1]
    assert not (tmp_path / "pictures").exists()


def test_a_sweep_over_strengths_and_pictures(run, tiny_model, tmp_path):
    Image.new("RGB", (72, 64), "blue").save("blue.png")
    common = ["--model", tiny_model, "--steps", 4, "--dtype", "fp32", "--out", "lab"]
    result = run("sweep", "a red cube", "--from", "photo.png", "--axis", "strength=0.5,1", *common)
    assert result.code == 0, result.err
    both = run("sweep", "a red cube", "--axis", "from=photo.png,blue.png", "--strength", "0.5", *common)
    assert both.code == 0, both.err
    shutil.copy("blue.png", "again.png")
    same = run("sweep", "a red cube", "--axis", "from=blue.png,again.png", *common)
    assert "again.png and blue.png have the same content" in same.err
    report = run("report", "lab", "--out", "report")
    assert report.code == 0, report.err


def test_json_names_the_picture(run, tiny_model):
    result = run("generate", "a red cube", "--model", tiny_model, "--from", "photo.png", "--json")
    assert json.loads(result.out)["settings"]["init_image"]["path"].endswith("photo.png")
