"""``ssd1b presets``: what is listed, shown and kept."""

import json

import pytest

from ssd1b.finetune.presets import PRESETS as FINETUNE_PRESETS
from ssd1b.finetune.settings import make_settings
from ssd1b.presets import PRESETS

MINE = (
    'name = "crisp"\nsource = "a sweep of 24 May"\n\n[settings]\nsteps = 15\n'
    "guidance_interval = [\n    0.2,\n    0.8,\n]\n"
)


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_every_preset_stands_with_its_evidence(run):
    done = run("presets", "--json")
    assert done.code == 0
    listed = [json.loads(line) for line in done.out.splitlines()]
    assert [each["name"] for each in listed] == [*PRESETS]
    assert all(each["source"] and each["settings"] for each in listed)
    read = run("presets").out
    assert "article-detail" in read and "guidance_scale 14.5" in read and "12 to 17" in read


def test_a_preset_is_kept_and_found_by_its_name(run, tmp_path, tiny_model):
    (tmp_path / "mine.toml").write_text(MINE)
    done = run("presets", "--keep", "mine.toml")
    assert done.code == 0, done.err
    assert "a sweep of 24 May" in run("presets").out
    assert run("presets", "crisp").out == MINE
    drawn = run("generate", "a cube", "--model", tiny_model, "--preset", "crisp", "--steps", 1, "--json")
    assert json.loads(drawn.out)["settings"]["guidance_interval"] == [0.2, 0.8]


def test_a_name_is_never_taken_twice(run, tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    assert run("presets", "--keep", "mine.toml").code == 0
    for name in ("crisp", "basic"):
        done = run("presets", "--keep", "mine.toml", "--name", name)
        assert done.code == 2 and f"preset '{name}' exists already" in done.err
    assert run("presets", "--keep", "mine.toml", "--name", "crisp.2").code == 0
    assert run("presets", "crisp.2").out == MINE.replace("crisp", "crisp.2")


def test_a_broken_file_does_not_hide_the_others(run, tmp_path):
    folder = tmp_path / "config/ssd1b/presets"
    folder.mkdir(parents=True)
    (folder / "broken.toml").write_text("steps = 1")
    done = run("presets")
    assert done.code == 0 and "left out: preset" in done.err and "article-detail" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["articl-detail"], ["unknown preset 'articl-detail'", "did you mean 'article-detail'"]),
        (["basic", "--keep", "mine.toml"], ["not both"]),
        (["--name", "x"], ["--name is only for --keep"]),
        (["--keep", "mine.toml"], ["cannot read mine.toml"]),
        (["--keep", "mine.txt"], ["cannot keep 'mine.txt'", ".toml or .json"]),
        (["--keep", "there.toml", "--name", "../x"], ["name is '../x'", "letters"]),
        (["--keep", "there.toml", "--name", "x.toml"], ["name is 'x.toml'"]),
    ],
)
def test_wrong_calls(run, tmp_path, arguments, words):
    (tmp_path / "there.toml").write_text(MINE)
    done = run("presets", *arguments)
    assert done.code == 2 and done.out == ""
    assert all(word in done.err for word in words), done.err


def test_presets_of_fine_tunings_are_files_for_it(run, tmp_path):
    listed = [json.loads(line) for line in run("presets", "--finetune", "--json").out.splitlines()]
    assert [each["name"] for each in listed] == [*FINETUNE_PRESETS] and all(each["source"] for each in listed)
    assert "alpha 16.0" in run("presets", "--finetune").out
    for name in FINETUNE_PRESETS:
        (tmp_path / "run.toml").write_text(run("presets", "--finetune", name).out)
        again = make_settings("run.toml", {}, size=64)
        assert again == make_settings(None, {}, size=64, preset=name)
    for wrong, error in ((["kohya"], "kohya-lora"), (["--keep", "x.toml"], "--keep")):
        result = run("presets", "--finetune", *wrong)
        assert result.code == 2 and error in result.err and result.err.count("\n") == 1
