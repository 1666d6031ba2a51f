"""``ssd1b inspect``: what it tells is what is there, and its command line draws the same."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from ssd1b.actions.rerun import reproduction_command
from ssd1b.cli import generate
from ssd1b.enlarging import load_network
from ssd1b.images import Picture, read_recipe, save_picture
from ssd1b.layouts import SSD_1B_MINI, ControlNetLayout, encoder_of
from ssd1b.models.controlnet import ControlNet
from ssd1b.models.unet import UNet
from ssd1b.recipe import ModelIdentity, Parameters, Recipe
from ssd1b.sampler_names import SAMPLERS, SCHEDULES
from ssd1b.settings import GenerationSettings, resolve_settings
from ssd1b.weights import hub
from upscaler_files import write_compact


def test_model_as_text(run, tiny_model, tiny_layout):
    result = run("inspect", tiny_model)
    assert (result.code, result.err) == (0, "")
    with torch.device("meta"):
        parameters = sum(each.numel() for each in UNet(tiny_layout.unet).parameters())
    rows = {line.split()[0]: line.split() for line in result.out.splitlines() if line}
    assert rows["unet"][:2] == ["unet", f"{parameters:,}"]
    assert rows["unet"][-1] == "float32"
    assert rows["layout"] == "layout custom: 21 transformer blocks, arranged as in koala-700m".split()
    assert rows["trained"] == ["trained", "for", "64x64"]
    assert rows["defaults"] == "defaults sampler euler, steps 2, guidance_scale 5.0".split()
    assert rows["2"] == ["2", "32", "5", "5", "5"]
    assert "note:" not in result.out


def test_model_as_json(run, tiny_model, tiny_layout):
    facts = json.loads(run("inspect", tiny_model, "--json").out)
    assert set(facts["parts"]) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    unet = facts["parts"]["unet"]
    assert unet["bytes"] == 4 * unet["parameters"]
    assert unet["layout"] == json.loads(json.dumps(asdict(tiny_layout.unet)))
    assert (facts["size"], facts["family"], facts["settings"]["steps"]) == (64, "koala-700m", 2)
    assert facts["scheduler"]["prediction_type"] == "epsilon"


def test_one_network_says_what_it_lacks(run, tiny_model):
    result = run("inspect", tiny_model / "vae")
    assert result.code == 0
    assert "note: " in result.out and "not a complete model: it has vae but no unet" in result.out
    assert "trained for" not in result.out


def test_an_upscaler(run, tmp_path, monkeypatch):
    path = write_compact(tmp_path / "4x-tiny.safetensors", scale=4)
    text = run("inspect", path).out
    rows = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert (rows["architecture"], rows["scale"], rows["channels"]) == ("RealESRGAN Compact", "4x", "3")
    assert json.loads(run("inspect", path, "--json").out)["scale"] == 4
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.setattr("ssd1b.extras.find_spec", lambda name: None)
    load_network.cache_clear()
    refused = run("inspect", path)
    assert refused.code == 2
    assert "no network of SDXL's family; it contains body.0.bias, " in refused.err
    assert "pip install 'ssd1b[upscale]'" in refused.err


def test_picture(run, picture_of):
    result = run("inspect", picture_of("png"))
    assert (result.code, result.err) == (0, "")
    rows = [line.split(maxsplit=1) for line in result.out.splitlines()]
    assert ["prompt", "a red cube"] in rows and ["seed", "7"] in rows and ["dtype", "float32"] in rows
    assert result.out.splitlines()[-1] == f"ssd1b rerun {picture_of('png')}"


def test_picture_as_json(run, picture_of):
    facts = json.loads(run("inspect", picture_of("webp"), "--json").out)
    assert set(facts) == {"path", "recipe", "command", "model_is_known"}
    assert facts["recipe"] == json.loads(json.dumps(asdict(read_recipe(picture_of("webp")))))


def test_the_printed_command_draws_the_same_picture(
    run, tmp_path, monkeypatch, tiny_model, picture_of, image_at
):
    monkeypatch.setitem(hub.BUILT_IN, "tiny", tiny_model)
    recipe = read_recipe(picture_of("png"))
    recipe = replace(recipe, model=replace(recipe.model, source="tiny"))
    save_picture(Picture(image=image_at(picture_of("png")), recipe=recipe), tmp_path / "known.png")
    last = run("inspect", "known.png").out.splitlines()[-1]
    program, *arguments = shlex.split(last)
    assert arguments[0] == "generate"
    assert program == "ssd1b"
    again = tmp_path / run(*arguments).out.strip()
    assert image_at(again).tobytes() == image_at(picture_of("png")).tobytes()


def test_automatic1111s_text(run, tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a \x1b[31mcone\nSteps: 3, Sampler: Euler a, CFG scale: 4, Seed: 11")
    Image.new("RGB", (64, 64)).save(tmp_path / "foreign.png", pnginfo=chunks)
    text = run("inspect", "foreign.png").out
    assert "\x1b" not in text and r"a \x1b[31mcone" in text
    assert text.splitlines()[-1] == "ssd1b rerun foreign.png"
    assert "not reproduced: noise from a GPU, as no RNG is named" in text
    facts = json.loads(run("inspect", "foreign.png", "--json").out)
    assert facts["parameters"]["values"]["Sampler"] == "Euler a"
    assert len(facts["not_reproduced"]) == 2 and "the size" in facts["not_reproduced"][1]


def test_micro_conditioning_needs_rerun(run, tmp_path, picture_of, image_at):
    recipe = read_recipe(picture_of("png"))
    cropped = replace(recipe, settings=replace(recipe.settings, crop_top_left=(8, 0)))
    save_picture(Picture(image=image_at(picture_of("png")), recipe=cropped), tmp_path / "a picture.png")
    assert run("inspect", "a picture.png").out.splitlines()[-1] == "ssd1b rerun 'a picture.png'"


TEXTS = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1, max_size=20)


@st.composite
def settings_of(draw: st.DrawFn) -> Callable[[], GenerationSettings]:
    """Settings that the test makes: checking types draws random numbers, which strategies may not."""
    start, end = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True)))
    return partial(
        resolve_settings,
        draw(TEXTS.filter(str.strip)),
        family="sdxl",
        model_defaults={},
        preset=None,
        negative_prompt=draw(st.none() | st.just("") | TEXTS),
        guidance_scale=draw(st.floats(0, 100)),
        guidance_rescale=draw(st.floats(0, 1)),
        guidance_interval=(start, end),
        steps=draw(st.integers(1, 1000)),
        sampler=draw(st.sampled_from(list(SAMPLERS))),
        schedule=draw(st.none() | st.sampled_from(list(SCHEDULES))),
        seed=draw(st.integers(0, 2**32 - 1)),
        width=draw(st.integers(8, 128)) * 8,
        height=draw(st.integers(8, 128)) * 8,
    )


@given(make=settings_of())
def test_the_command_line_says_every_setting(make):
    settings = make()
    recipe = Recipe(
        settings=settings,
        model=ModelIdentity(name="m", source="ssd-1b", revision="abc", layout="sdxl"),
        dtype="float16",
        device="cuda",
        batch_size=1,
        threads=1,
        torch_version="2",
        ssd1b_version="1",
    )
    program, name, *arguments = shlex.split(reproduction_command("x.png", recipe))
    assert (program, name) == ("ssd1b", "generate")
    said = generate.command.make_context("generate", arguments).params
    (prompt,) = said["prompts"]
    width, height = said["size"].split("x")
    chosen = {key: said[key] for key in asdict(settings) if said.get(key) is not None}
    resolved = resolve_settings(
        prompt, family="ssd-1b", model_defaults={"schedule": "beta"}, preset=None,
        **chosen, width=int(width), height=int(height),
    )  # fmt: skip
    assert resolved == settings
    assert (said["model"], said["dtype"], said["device"]) == ("ssd-1b@abc", "float16", "cuda")


@pytest.mark.parametrize("values", [{"Steps": "many"}, {"Size": "big"}])
def test_numbers_that_are_none_are_left_to_rerun(values):
    foreign = Parameters(prompt="a cube", negative_prompt=None, values=values)
    assert reproduction_command("x.png", foreign) == "ssd1b rerun x.png"


def test_a_control_network(run, tmp_path):
    layout = ControlNetLayout(encoder=encoder_of(SSD_1B_MINI), hint=(4, 4, 4, 4))
    save_file(ControlNet(layout).state_dict(), tmp_path / "net.safetensors")
    result = run("inspect", "net.safetensors")
    assert result.code == 0, result.err
    assert "ControlNet, with the blocks of ssd-1b" in result.out
    assert re.search(r"mini-ssd-1b +yes", result.out) and re.search(r"mini-sdxl +yes", result.out)
    assert re.search(r"sdxl +no +its levels have 44, 48, 96 channels, the model's 320, 640, 1280", result.out)
    facts = json.loads(run("inspect", "net.safetensors", "--model", "mini-sdxl", "--json").out)
    assert facts["models"] == {"mini-sdxl": None} and facts["order"] == "rgb"
    assert facts["parameters"] == sum(each.numel() for each in ControlNet(layout).parameters())
    save_file({"control_model.zero_convs.0.0.weight": torch.ones(1)}, tmp_path / "old.safetensors")
    result = run("inspect", "old.safetensors")
    assert (result.code, result.out) == (2, "") and "only those for SDXL's family are supported" in result.err
