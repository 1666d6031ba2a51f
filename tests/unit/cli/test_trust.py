"""Recipes of strangers: no model is opened, looked for or asked for that the user did not name or allow."""

import json
import os
import re
import shutil
from dataclasses import asdict, replace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from ssd1b.images import Picture, read_recipe, save_picture
from ssd1b.weights import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\u2066\r\n\x7f\u2028\x85"
"""What terminals act on, or what turns the order of letters round."""


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the hub was asked for, by a hub that knows nothing."""
    calls = []

    def record(repository, revision, *, half, token):
        calls.append((repository, revision, token))
        return "nobody answers"

    monkeypatch.setattr(hub, "download", record)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return calls


@pytest.fixture
def naming(tmp_path, picture_of, image_at):
    """A picture whose recipe names a model."""

    def save(source, revision=None, **changes):
        recipe = read_recipe(picture_of("png"))
        model = replace(recipe.model, source=source, revision=revision)
        picture = Picture(image=image_at(picture_of("png")), recipe=replace(recipe, model=model, **changes))
        return save_picture(picture, tmp_path / "strange.png")

    return save


STRANGE = [
    ("stranger/model", None),
    ("stranger/model", COMMIT),
    ("stranger/model@main", None),
    ("ssd-1b", "refs/pr/3"),
    ("segmind/SSD-1B", "refs/pr/3"),
    ("segmind/SSD-1B-evil", None),
    ("{tiny}", None),
    ("/etc/passwd", None),
    ("../models/x.safetensors", None),
    ("~/model", None),
    ("~no-such-user/model", None),
    (r"\\server\share\model", None),
    ("file:///etc/passwd", None),
    ("https://example.com/a", None),
    ("mini-ssd-1b", "main"),
    ("mini-ssd-1b/", None),
    ("", None),
    (".", None),
]


@pytest.mark.parametrize(("source", "revision"), STRANGE)
def test_a_strange_model_is_neither_asked_for_nor_looked_for(
    run, naming, asked, monkeypatch, tiny_model, source, revision
):
    picture = naming(source.format(tiny=tiny_model), revision)
    looked_at = watched(monkeypatch)
    result = run("rerun", picture)
    assert result.code == 2
    assert result.err.startswith("error: the image names the model '"), result.err
    assert "--model" in result.err and "--trust-recipe" in result.err
    assert asked == []
    assert not looked_at & {source.format(tiny=tiny_model), os.path.expanduser(source)}
    told = run("inspect", picture)
    assert told.code == 0
    assert told.out.splitlines()[-1] == f"ssd1b rerun {picture}"
    assert asked == []


def watched(monkeypatch):
    """Every path that is asked after or opened from now on."""
    looked_at = set()

    def noting(real):
        def note(path, *rest, **how):
            looked_at.add(str(path))
            return real(path, *rest, **how)

        return note

    for name in ("stat", "lstat", "open", "listdir", "scandir"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    return looked_at


@pytest.mark.parametrize(("source", "revision"), [("stranger/model", COMMIT), ("ssd-1b", "refs/pr/3")])
def test_a_repository_that_only_the_picture_names_gets_no_token(run, naming, asked, source, revision):
    picture = naming(source, revision)
    result = run("rerun", picture, "--trust-recipe")
    assert (result.code, asked) == (2, [(hub.ALIASES.get(source, source), revision, False)])
    assert "nobody answers" in result.err
    asked.clear()
    run("rerun", picture, "--model", "my/own")
    assert asked == [("my/own", "main", True)]


@pytest.mark.parametrize("more", [[], ["--trust-recipe"]])
@pytest.mark.parametrize("source", ["ssd-1b", "VEGA", "sdxl", "segmind/SSD-1B"])
def test_a_published_model_gets_no_token(run, naming, asked, tmp_path, tiny_model, source, more):
    shutil.copytree(tiny_model, tmp_path / source)  # a folder of the same name is not what is meant
    assert run("rerun", naming(source, COMMIT), *more).code == 2
    assert asked == [(hub.ALIASES.get(source.lower(), source), COMMIT, False)]


def test_a_cached_model_is_used_and_the_hub_not_asked(run, naming, asked, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "hub/models--some-one--tiny/snapshots" / COMMIT)
    result = run("rerun", naming("some-one/tiny", COMMIT))
    assert (result.code, asked) == (0, [])
    assert result.err.startswith("bit-equal")
    assert run("inspect", tmp_path / "strange.png").out.splitlines()[-1].startswith("ssd1b generate")


def test_a_path_is_opened_when_that_is_allowed(run, naming, asked, tiny_model):
    result = run("rerun", naming(str(tiny_model)), "--trust-recipe")
    assert (result.code, asked) == (0, [])


@pytest.mark.parametrize("name", ["~no-such-user/x", "x" * 5000, "a\nb"])
def test_a_model_that_cannot_be_is_one_line_however_far_it_is_trusted(run, naming, asked, name):
    result = run("rerun", naming(name), "--trust-recipe")
    assert (result.code, result.err.count("\n"), asked) == (2, 1, [])


def test_nothing_is_sent_with_the_hub_asked_for_real(run, naming, monkeypatch, tmp_path):
    """The token as the library of the hub would get it."""
    tokens = []

    def model_info(self, *_, token=None, **__):
        tokens.append(token)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run("rerun", naming("stranger/model"), "--trust-recipe").code == 2
    assert tokens and set(tokens) == {False}


PLACES = ["prompt", "negative_prompt", "name", "source", "revision", "layout", "dtype", "device",
          "torch_version", "ssd1b_version"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_terminal_acts_on_nothing_in_a_recipe(run, tmp_path, naming, monkeypatch, tiny_model, place):
    monkeypatch.setitem(hub.BUILT_IN, "tiny", tiny_model)
    recipe = read_recipe(naming("tiny"))
    change = {place: f"a{ESCAPES}"}
    if place in ("prompt", "negative_prompt"):
        recipe = replace(recipe, settings=replace(recipe.settings, **change))
    elif place in ("name", "source", "revision", "layout"):
        recipe = replace(recipe, model=replace(recipe.model, **change))
    else:
        recipe = replace(recipe, **change)
    image = Picture(image=read_image(tmp_path / "strange.png"), recipe=recipe)
    path = save_picture(image, tmp_path / "escapes.png")
    results = [run("inspect", path), run("inspect", path, "--json"), run("rerun", path)]
    results += [run("rerun", path, "--model", tiny_model, "--dtype", "fp32")]
    for result in results:
        assert_plain(result)
    assert json.loads(results[1].out)["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert results[3].code == 0


def read_image(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def assert_plain(result):
    for line in (result.out + result.err).split("\n"):
        assert re.sub(r"\t", "", line).isprintable() or line == "", ascii(line)


def test_a_terminal_acts_on_nothing_in_a_models_names(run, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_file({f"unet{ESCAPES}": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={ESCAPES: ESCAPES})
    shutil.copytree(hub.BUILT_IN["mini-ssd-1b"], tmp_path / f"hub/models--some--m{ESCAPES}/snapshots/x")
    for result in (run("inspect", "a.safetensors"), run("models"), run("models", "--json")):
        assert_plain(result)
    assert "some/m" in run("models").out


def test_a_terminal_acts_on_nothing_in_a_models_configurations(run, tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / f"m{ESCAPES}")
    for part, key in (("scheduler/scheduler_config", "_class_name"), ("unet/config", ESCAPES)):
        path = model / f"{part}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: f"a{ESCAPES}"}))
        for result in (run("inspect", model), run("inspect", model, "--json")):
            assert_plain(result)
