"""``ssd1b evaluate``: what it prints and writes, with a judge that has learned nothing."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ssd1b.evaluate.cost import unet_macs
from ssd1b.extras import install
from ssd1b.layouts import SSD_1B_MINI
from ssd1b.tabletop.judge.judge import Judge


@pytest.fixture(scope="session")
def ignorant(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_file(Judge().state_dict(), path)
    return path


QUICK = ("evaluate", "--captions", 4, "--steps", 2)


def test_figures_as_json_and_on_disk(run, ignorant, tmp_path):
    done = run(*QUICK, "--seeds", 2, "--judge", ignorant, "--out", "result", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts == json.loads((tmp_path / "result/evaluation.json").read_text())
    (model,) = facts["models"]
    assert model["model"] == "mini-ssd-1b" and facts["difference"] == {}
    assert set(model["table"]) == {"all", "one solid", "two solids", "seen", "new"}
    assert model["table"]["all"]["right"]["size"] == 4, "pictures of one caption count once"
    assert model["diversity"]["size"] == 4
    # Two steps of two passes, each a picture's worth.
    assert model["unet_gmacs"] == pytest.approx(4 * unet_macs(SSD_1B_MINI, 16, 16) / 1e9)
    with Image.open(tmp_path / "result/sheet-0.png") as sheet:
        assert sheet.width > 128


def test_a_model_does_not_differ_from_itself_and_few_captions_are_warned_of(run, ignorant, monkeypatch):
    monkeypatch.setattr("ssd1b.cli.evaluate.FEW", 5)
    done = run(*QUICK, "--judge", ignorant, "--versus", "mini-ssd-1b", "--seeds", 2)
    assert done.code == 0, done.err
    assert done.out.count("not statistically distinguishable from zero") >= 9
    warning = "warning: intervals of fewer than 5 captions are too narrow"
    assert warning in done.err.splitlines(), "8 images, but 4 captions"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--captions", 3], ["captions is 3", "a multiple of 2"]),
        (["--seeds", 0], ["seeds is 0"]),
        (["--seed", 3], ["seed is fixed"]),
        (["--size", 64], ["width is fixed"]),
        (["--judge", "nothing.safetensors"], ["nothing.safetensors", "train judge"]),
        (["--judge", "other.safetensors"], ["no judge of this version"]),
        (["--ray", "nowhere"], ["--ray is 'nowhere'", "HOST:PORT, auto and local"]),
        (["--ray-actors", 2], ["--ray-actors needs --ray"]),
    ],
)
def test_wrong_calls(run, tmp_path, arguments, words):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    done = run("evaluate", *arguments)
    assert done.code == 2 and done.out == ""
    assert all(word in done.err for word in words), done.err


def test_a_library_of_an_extra_that_is_missing_is_named_with_the_extra(run, monkeypatch):
    def without(*arguments):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy.stats")

    monkeypatch.setattr("ssd1b.actions.evaluate.load_judge", without)
    result = run("evaluate")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: this needs scipy, which is not installed: {install(['scipy'])}\n"
