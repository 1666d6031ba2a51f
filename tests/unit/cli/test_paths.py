"""Paths that people type: what can be none is refused in one line, by every option, before any work."""

import os
import socket

import click
import pytest

from ssd1b.cli import app
from ssd1b.pipeline import Pipeline

OUTPUTS = {
    "generate": ["generate", "a cube", "--out"],
    "rerun": ["rerun", "picture.png", "--out"],
    "upscale": ["upscale", "picture.png", "--out"],
    "sweep": ["sweep", "a cube", "--out"],
    "report": ["report", "store", "--out"],
    "tune": ["tune", "--out"],
    "guide": ["guide", "--out"],
    "evaluate": ["evaluate", "--captions", "2", "--out"],
    "bench": ["bench", "--out"],
    "distill": ["distill", "--teacher", "mini-sdxl", "--student", "ssd-1b", "--data", "tabletop", "--out"],
    "distill --cache": ["distill", "--teacher", "mini-sdxl", "--student", "ssd-1b", "--dry-run", "--cache"],
    "distill --dry-run": ["distill", "--teacher", "mini-sdxl", "--student", "ssd-1b", "--dry-run", "--out"],
    "render": ["tabletop", "render", "--out"],
    "show": ["tabletop", "show", "--out"],
    "examine": ["tabletop", "examine", "--out"],
    "train": ["tabletop", "train", "vae", "--out"],
}
"""Calls whose next word is where something is to be written."""

INPUTS = {
    "rerun": ["rerun"],
    "upscale": ["upscale", "--out", "out"],
    "upscale --model": ["upscale", "picture.png", "--out", "out", "--model"],
    "generate --hires-upscaler": ["generate", "a cube", "--hires-scale", "2", "--hires-upscaler"],
    "inspect": ["inspect"],
    "report": ["report"],
    "presets": ["presets"],
    "generate --file": ["generate", "--file"],
    "generate --model": ["generate", "a cube", "--model"],
    "generate --preset": ["generate", "a cube", "--preset"],
    "sweep --axes": ["sweep", "a cube", "--out", "out", "--axes"],
    "sweep --preset": ["sweep", "a cube", "--out", "out", "--preset"],
    "evaluate --data": ["evaluate", "--data"],
    "evaluate --judge": ["evaluate", "--judge"],
    "evaluate --versus": ["evaluate", "--captions", "2", "--model", "nothing/x", "--offline", "--versus"],
    "presets --keep": ["presets", "--keep"],
    "distill --teacher": ["distill", "--dry-run", "--student", "ssd-1b", "--teacher"],
    "distill --student": ["distill", "--teacher", "mini-sdxl", "--dry-run", "--student"],
    "distill --stages": ["distill", "--teacher", "mini-sdxl", "--dry-run", "--stages"],
    "distill --data": ["distill", "--teacher", "mini-sdxl", "--dry-run", "--student", "ssd-1b", "--data"],
    "finetune --init-control": [
        "finetune",
        "--model",
        "mini-ssd-1b",
        "--dry-run",
        "--method",
        "controlnet",
        "--init-control",
    ],
    "finetune --sample-control": [
        "finetune",
        "--model",
        "mini-ssd-1b",
        "--method",
        "controlnet",
        "--controls",
        "edges",
        "--data",
        "x",
        "--out",
        "out",
        "--sample",
        "a cube",
        "--sample-control",
    ],
    "examine --judge": ["tabletop", "examine", "--judge"],
    "examine --through": ["tabletop", "examine", "--through"],
    "show --model": ["tabletop", "show", "--model"],
    "train --from": ["tabletop", "train", "vae", "--out", "out", "--from"],
    "train judge --from": ["tabletop", "train", "judge", "--out", "out", "--from"],
}
"""Calls whose next word is what is to be read."""

NAMES = {
    "long": "x" * 300,
    "long behind a new folder": "new/" + "x" * 300,
    "far": "x/" * 3000,
    "null": "a\0b",
    "nobody": "~nosuchuser",
    "nobody's folder": "~nosuchuser/pictures",
    "half a character": "a\ud800b",
    "loop": "loop",
    "beneath a loop": "loop/a",
}
"""What can be no path."""


@pytest.fixture
def refuse(run, tmp_path, monkeypatch):
    """Call ``ssd1b`` and hold it to what is promised of wrong paths; gives the line."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(Pipeline, "steps", lambda *_, **__: pytest.fail("drew"))

    def call(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = run(*arguments)
        assert (result.code, result.out) == (2, ""), result
        assert result.err.startswith("error: ") and len(result.err.splitlines()) == 1
        assert len(result.err) < 1000
        assert sorted(tmp_path.rglob("*")) == before
        return result.err

    return call


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", OUTPUTS)
def test_what_can_be_no_path_is_refused_where_something_is_written(refuse, call, name):
    if call == "show":
        name = "beneath a loop" if name == "loop" else name
        line = refuse(*OUTPUTS[call], NAMES[name] + ("" if name.startswith("nobody") else ".png"))
    else:
        line = refuse(*OUTPUTS[call], NAMES[name])
    assert any(words in line for words in ("cannot be a path here", "no user of that name", "cannot write"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", INPUTS)
def test_what_can_be_no_path_is_refused_where_something_is_read(refuse, call, name):
    refuse(*INPUTS[call], NAMES[name])


@pytest.mark.parametrize("call", OUTPUTS)
@pytest.mark.parametrize("path", ["file/out", "file/out/deeper"])
def test_nothing_can_be_written_beneath_a_file(refuse, call, path):
    line = refuse(*OUTPUTS[call], f"{path}.png" if call == "show" else path)
    assert "Not a directory" in line


@pytest.mark.parametrize("call", OUTPUTS)
def test_a_folder_without_permission_is_known_before(refuse, monkeypatch, call):
    """The superuser, who may run this, has every permission; so the system's answer is another one here."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    line = refuse(*OUTPUTS[call], "locked/out.png" if call == "show" else "locked/out")
    assert "Permission denied" in line


PLACES = {
    "generate --model": (".safetensors", ["generate", "a cube", "--model"]),
    "generate --file": (".txt", ["generate", "--file"]),
    "generate --preset": (".toml", ["generate", "a cube", "--preset"]),
    "generate --preset json": (".json", ["generate", "a cube", "--preset"]),
    "inspect picture": (".png", ["inspect"]),
    "inspect model": (".safetensors", ["inspect"]),
    "rerun": (".png", ["rerun"]),
    "upscale --model": (".safetensors", ["upscale", "picture.png", "--out", "out", "--model"]),
    "generate --hires-upscaler": (
        ".safetensors",
        ["generate", "a cube", "--hires-scale", "2", "--hires-upscaler"],
    ),
    "presets --keep": (".toml", ["presets", "--keep"]),
    "sweep --axes": (".toml", ["sweep", "a cube", "--out", "out", "--axes"]),
    "distill --teacher": (".safetensors", ["distill", "--dry-run", "--student", "ssd-1b", "--teacher"]),
    "distill --student": (".toml", ["distill", "--teacher", "mini-sdxl", "--dry-run", "--student"]),
    "distill --stages": (".toml", ["distill", "--teacher", "mini-sdxl", "--dry-run", "--stages"]),
    "examine --judge": (".safetensors", ["tabletop", "examine", "--judge"]),
    "train judge --from": (".safetensors", ["tabletop", "train", "judge", "--out", "out", "--from"]),
}


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a folder"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_not_waited_for(refuse, tmp_path, place, kind):
    suffix, words = PLACES[place]
    path = tmp_path / f"it{suffix}"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            os.chdir(tmp_path)
            bound.bind(path.name)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
        if "model" in place or "teacher" in place:
            pytest.skip("a model may be a folder")
    assert f"it is {kind}, not a file" in refuse(*words, path.name)


def commands(group: click.Group, context: click.Context):
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        yield from commands(found, context) if isinstance(found, click.Group) else [found]


def test_every_path_of_every_command_is_checked_when_it_is_read():
    """A new option cannot forget: what its metavar calls a file or folder has one of the types of paths."""
    from ssd1b.cli.paths import PathType

    context = click.Context(app.cli)
    # Checked where they are opened.
    lowest = {
        "--preset",
        "--stages",
        "--model",
        "--lora",
        "--embedding",
        "--ip-adapter",
        "--hires-upscaler",
        "--masks",
        "--controls",
        "--init-control",
        "loras",
        "subject",
        "name",
    }
    unchecked = [
        f"{command.name} {parameter.opts[0]}"
        for command in commands(app.cli, context)
        for parameter in command.params
        if any(word in (parameter.metavar or "") for word in ("FILE", "FOLDER", "RUN"))
        and not isinstance(parameter.type, PathType)
        and not lowest & set(parameter.opts)
    ]
    assert unchecked == []


# What belongs to the user


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["tabletop", "show", "--count", "1", "--out", "out/sheet.png"], "sheet.png"),
        (["tabletop", "render", "--count", "1", "--out", "out"], "train-0-000000.png"),
        (["tabletop", "render", "--count", "1", "--out", "out"], "train-0-000000.txt"),
        (["tabletop", "examine", "--count", "4", "--out", "out"], "examination.json"),
        (["tabletop", "examine", "--count", "4", "--out", "out"], "confusion-0.png"),
        (["evaluate", "--captions", "2", "--out", "out"], "evaluation.json"),
        (["evaluate", "--captions", "2", "--out", "out"], "sheet-0.png"),
        (["bench", "--out", "out"], "bench.svg"),
        (["guide", "--out", "out"], "guide.md"),
        (["guide", "--only", "steps", "--out", "out"], "steps.webp"),
        (["tune", "--out", "out"], "preset.json"),
        ([*OUTPUTS["distill --dry-run"], "out"], "layers.png"),
        ([*OUTPUTS["distill"], "out"], "model.safetensors"),
        ([*OUTPUTS["distill"], "out"], "importance.json"),
        ([*OUTPUTS["distill"], "out"], "distill.json"),
    ],
)
def test_a_users_file_of_the_same_name_stays(refuse, tmp_path, words, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    if "render" in words:
        (tmp_path / "out/train-0-000000.png").write_text("mine")
    assert "already exists: choose another name, or add --overwrite" in refuse(*words)
    assert (tmp_path / "out" / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["tabletop", "show", "--count", "1", "--overwrite", "--out", "out/sheet.png"], "sheet.png"),
        (["tabletop", "render", "--count", "1", "--overwrite", "--out", "out"], "train-0-000000.png"),
        (["tabletop", "examine", "--count", "4", "--overwrite", "--out", "out"], "examination.json"),
        (["bench", "--overwrite", "--out", "out"], "bench.svg"),
        (["guide", "--overwrite", "--out", "out"], "guide.md"),
        (["tune", "--overwrite", "--out", "out"], "preset.json"),
        ([*OUTPUTS["distill --dry-run"], "out", "--overwrite"], "layers.tsv"),
        ([*OUTPUTS["distill"], "out"], "model"),
        ([*OUTPUTS["distill"], "out", "--overwrite"], "model.safetensors"),
        (["tabletop", "train", "unet", "--out", "out"], "model"),
    ],
)
def test_a_users_folder_of_the_same_name_stays_whatever_is_asked_for(refuse, tmp_path, words, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "photo.jpg").write_text("mine")
    assert "a folder has that name" in refuse(*words)
    assert (tmp_path / "out" / name / "photo.jpg").read_text() == "mine"


def test_overwriting_is_done_if_it_is_asked_for(run, tmp_path):
    (tmp_path / "sheet.png").write_text("mine")
    words = ["tabletop", "show", "--count", "1", "--out", "sheet.png"]
    assert run(*words).code == 2
    assert run(*words, "--overwrite").code == 0
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_written_is_written_again_without_asking(run, tmp_path):
    for _ in range(2):
        assert run("tabletop", "render", "--count", "2", "--out", "out").code == 0
        assert run(*OUTPUTS["distill --dry-run"], "plan").code == 0
    assert len(list((tmp_path / "out").iterdir())) == 4
    (tmp_path / "plan/layers.tsv").write_text("my notes")
    assert "layers.tsv already exists" in run(*OUTPUTS["distill --dry-run"], "plan").err


def test_a_training_does_not_begin_in_a_folder_of_the_users(refuse, tmp_path):
    (tmp_path / "out/vae").mkdir(parents=True)
    (tmp_path / "out/vae/log.jsonl").write_text("mine")
    (tmp_path / "out/vae/download.partial").write_text("mine")
    line = refuse("tabletop", "train", "vae", "--out", "out", "--steps", "1", "--batch-size", "4")
    assert "contains files that ssd1b did not write" in line
