"""Adapters on the command line: images, their recipes, and what a file is."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from adapter_files import attention, random_lora, write_lora
from ssd1b.layouts import model_layout
from ssd1b.pipeline import Pipeline
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


def test_a_lora_that_fits_nothing_is_refused_before_weights_are_read(
    run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "load", None)
    pair = {"up": torch.ones(8, 1), "down": torch.ones(1, 8)}
    tensors = {f"lora_unet_other.lora_{which}.weight": tensor for which, tensor in pair.items()}
    save_file(tensors, tmp_path / "other.safetensors")
    refused = run("generate", "a cat", "--model", tiny_model, "--lora", "other.safetensors")
    assert refused.code == 2 and "other.safetensors" in refused.err.splitlines()[-1]


def test_keys_that_match_nothing_are_advice(run, tiny_model: Path, lora: Path) -> None:
    tensors = load_file(lora)
    odd = {f"{key}.x": tensor.clone() for key, tensor in tensors.items()} | {
        "bundle_emb.x.clip_l": torch.ones(1, 8)
    }
    few = dict([*tensors.items()][:3])
    save_file(few | odd, lora)
    expected = (
        rf"advice: lora pixels: {len(tensors)} of {len(tensors) + 4} keys match nothing "
        rf"in {tiny_model.name}, such as \S+\.x: see ssd1b inspect\n"
    )
    made = run("generate", "a cat", "--model", tiny_model, "--size", 64, "--steps", 1, "--lora", lora)
    baked = run("lora", "bake", tiny_model, "--lora", lora, "--out", "new", "--dry-run")
    swept = run(
        "sweep", "a cat", "--model", tiny_model, "--lora", lora, "--axis", "lora-strength=0.5,1", "--dry-run",
        "--out", "cells",
    )  # fmt: skip
    Path("rows.txt").write_text("a cat\na dog\n")
    rows = run("bulk", "rows.txt", "--model", tiny_model, "--lora", lora, "--dry-run", "--out", "images")
    for each in (made, baked, swept, rows):
        assert each.code == 0 and len(re.findall(expected, each.err)) == 1, each.err


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


def test_tools(run, tmp_path: Path) -> None:
    layout = model_layout("mini-sdxl")
    for seed, name in enumerate(("a", "b")):
        adapter = random_lora(layout, attention(layout)[:4], seed=seed)
        write_lora(tmp_path / f"{name}.safetensors", adapter, layout)
    converted = run("lora", "convert", "a.safetensors", "--dialect", "comfyui", "--out", "c.safetensors")
    assert (converted.code, converted.out) == (0, "c.safetensors\n") and "modules  4" in converted.err
    assert "model    mini-sdxl, assumed" in converted.err
    merged = run("lora", "merge", "a.safetensors:0.5", "b.safetensors", "--out", "d.safetensors", "--json")
    assert json.loads(merged.out)["ranks"] == {"4": 4}
    resized = run("lora", "resize", "d.safetensors", "--rank", 2, "--dry-run", "--out", "e.safetensors")
    assert (resized.code, resized.out) == (0, "") and "kept" in resized.err
    assert not (tmp_path / "e.safetensors").exists()
    described = run("lora", "inspect", "c.safetensors", "--model", "mini-sdxl")
    assert described.code == 0 and "12 of 12" in described.out
    moved = run("lora", "convert", "a.safetensors", "--to", "mini-ssd-1b", "--out", "f.safetensors")
    assert moved.code == 0
    baked = run(
        "lora", "bake", "mini-ssd-1b", "--lora", "f.safetensors:0.5", "--out", "model", "--dtype", "fp16"
    )
    assert (baked.code, baked.out) == (0, "model\n") and (tmp_path / "model" / "model_index.json").exists()
    extracted = run(
        "lora", "extract", "mini-ssd-1b", "model", "--unet-only", "--rank", 2, "--out", "g.safetensors"
    )
    assert extracted.code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["resize", "a.safetensors", "--out", "b.safetensors"],
            "give a rank, or a share of the energy to keep",
        ),
        (
            ["resize", "a.safetensors", "--out", "b.safetensors", "--energy", "2"],
            "energy is 2.0: it must be a number",
        ),
        (["convert", "a.safetensors", "--out", "b.pt"], "the name of an adapter must end in .safetensors"),
        (["convert", "a.safetensors", "--out", "a.safetensors"], "already exists: choose another name"),
        (["convert", "none.safetensors", "--out", "b.safetensors"], "none.safetensors"),
        (["convert", "a.safetensors", "--to", "mini-sdx", "--out", "b.safetensors"], "mini-sdx"),
        (["merge", "--out", "b.safetensors"], "missing argument"),
        (["combine"], "unknown command 'combine'"),
        (["bake", "mini-ssd-1b", "--lora", "none.safetensors", "--out", "b"], "none.safetensors"),
        (
            ["bake", "mini-sdxl", "--lora", "a.safetensors", "--out", "b.safetensors", "--dry-run"],
            "b.safetensors: a single file cannot hold a tokenizer other than CLIP's; write a folder",
        ),
    ],
)
def test_tools_refuse_in_one_line(arguments: list[str], message: str, run, tmp_path: Path) -> None:
    layout = model_layout("mini-sdxl")
    write_lora(tmp_path / "a.safetensors", random_lora(layout, attention(layout)[:1]), layout)
    refused = run("lora", *arguments)
    assert refused.code == 2 and refused.err.count("\n") == 1 and message in refused.err, refused.err
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_is_never_replaced_by_a_models_folder(run, tmp_path: Path) -> None:
    (tmp_path / "kept.png").write_text("another's")
    layout = model_layout("mini-ssd-1b")
    write_lora(tmp_path / "a.safetensors", random_lora(layout, attention(layout)[:1]), layout)
    refused = run(
        "lora", "bake", "mini-ssd-1b", "--out", "kept.png", "--overwrite", "--lora", "a.safetensors"
    )
    assert (
        refused.code == 2 and "kept.png is a file: a model is a folder, or a file that ends in" in refused.err
    )
    assert (tmp_path / "kept.png").read_text() == "another's"
