"""Adapters on the command line: images, their recipes, and what a file is."""

import json
from pathlib import Path

import pytest
from PIL import Image

from adapter_files import attention, random_lora, write_lora
from ssd1b.layouts import model_layout
from tiny import DRAWABLE


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    (tmp_path / "loras").mkdir()
    adapter = random_lora(DRAWABLE, attention(DRAWABLE))
    return write_lora(tmp_path / "loras" / "pixels.safetensors", adapter, DRAWABLE)


def test_generate_inspect_and_rerun(run, tiny_model: Path, lora: Path) -> None:
    given = ["--model", tiny_model, "--device", "cpu", "--seed", 3, "--size", 64, "--json"]
    plain = run("generate", "a cat", *given)
    adapted = run("generate", "a cat", *given, "--lora", f"{lora}:0.1")
    tagged = run("generate", "a cat <lora:pixels:0.1>", *given, "--lora-folder", lora.parent)
    assert [each.code for each in (plain, adapted, tagged)] == [0, 0, 0]
    paths = [json.loads(each.out)["path"] for each in (plain, adapted, tagged)]
    pixels = [Image.open(path).convert("RGB").tobytes() for path in paths]
    assert pixels[0] != pixels[1] == pixels[2]
    described = run("inspect", paths[1])
    assert described.code == 0 and f"{lora}:0.1" in described.out
    recipe = json.loads(run("inspect", paths[1], "--json").out)["recipe"]
    assert recipe["settings"]["loras"][0]["unet"] == 0.1
    again = run("rerun", paths[1], "--model", tiny_model, "--device", "cpu", "--out", "again")
    assert again.code == 0 and "bit-equal" in again.err
    wrong = run("generate", "a cat <lora:pixel:0.1>", *given, "--lora-folder", lora.parent)
    assert wrong.code == 2 and wrong.err.count("\n") == 1 and "did you mean 'pixels'" in wrong.err


def test_a_few_step_adapter_brings_its_settings_also_as_a_tag(run, tiny_model: Path, lora: Path) -> None:
    lcm = lora.rename(lora.with_name("lcm-lora-tiny.safetensors"))
    given = ["--model", tiny_model, "--device", "cpu", "--seed", 3, "--size", 64, "--json"]
    calls = (["a cat", "--lora", lcm], ["a cat <lora:lcm-lora-tiny:1>", "--lora-folder", lcm.parent])
    for call in calls:
        made = run("generate", *call, *given)
        assert made.code == 0, made.err
        assert "lcm-lora-tiny is a few-step model (LCM): sampler lcm, schedule lcm, steps 4" in made.err
        settings = json.loads(made.out)["settings"]
        assert (settings["sampler"], settings["steps"], settings["guidance_scale"]) == ("lcm", 4, 1.0)
    made = run("generate", "a cat", "--lora", lcm, *given, "--guidance", 7, "--steps", 2, "--negative", "dog")
    assert json.loads(made.out)["settings"]["steps"] == 2
    assert "advice: guidance_scale 7: LCM was distilled with guidance; above 2 colours burn" in made.err


def test_given_timesteps_are_visited(run, tiny_model: Path) -> None:
    given = ["--model", tiny_model, "--device", "cpu", "--seed", 3, "--size", 64, "--json", "--guidance", 1]
    for sampler in ("lcm", "tcd", "euler", "ddim"):
        how = ["--sampler", sampler, "--timesteps", "999,499", "--gamma", 0.5]
        made = run("generate", "a cat", *given, *how)
        assert made.code == 0, made.err
        path = json.loads(made.out)["path"]
        again = run("rerun", path, "--model", tiny_model, "--device", "cpu", "--out", f"again-{sampler}")
        assert again.code == 0 and "bit-equal" in again.err
        assert "999,499" in run("inspect", path).out
    wrong = run("generate", "a cat", *given, "--timesteps", "1000,499")
    assert wrong.code == 2 and "timesteps begin with 1000: the model's are 0 to 999" in wrong.err


def test_inspect_an_adapter(run, tmp_path: Path) -> None:
    layout = model_layout("mini-sdxl")
    frequency = {"1_x": {"pixel art": 12, "a \x1b[31mcat": 3}}
    path = write_lora(
        tmp_path / "a.safetensors", random_lora(layout, attention(layout)), layout,
        ss_base_model_version="sdxl_base_v1-0", ss_tag_frequency=frequency, ss_steps="100",
    )  # fmt: skip
    text = run("inspect", path)
    assert text.code == 0 and "\x1b" not in text.out
    for piece in ("LoRA", "pixel art, a \\x1b[31mcat", "sdxl_base_v1-0", "mini-ssd-1b", "through"):
        assert piece.lower() in text.out.lower()
    facts = json.loads(run("inspect", path, "--json").out)
    assert facts["ranks"] == {"2": len(attention(layout))} and facts["alphas"] == {
        "3": len(attention(layout))
    }
    models = facts["models"]
    assert models["mini-sdxl"]["carried"] == 1 and models["mini-sdxl"]["unmatched"] == {}
    student = models["mini-ssd-1b"]
    assert student["through"] == "sdxl" and 0.3 < student["carried"] < 0.7
    assert [*student["unmatched"]] == ["its block is removed in ssd-1b"]
    assert "error" in models["sdxl"]
    only = json.loads(run("inspect", path, "--json", "--model", "mini-ssd-1b").out)["models"]
    assert only == {"mini-ssd-1b": student}
