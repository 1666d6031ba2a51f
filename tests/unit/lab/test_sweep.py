"""Sweeps: combinations become jobs, and what decides a picture decides its job's key."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lab_cells import FAKE, Fake, run, sweep, wanted
from ssd1b.errors import InputError
from ssd1b.jobs.store import DONE, Store
from ssd1b.lab.axes import parse_axis
from ssd1b.lab.sweep import (
    MAX_CELLS,
    ModelDescription,
    Sweep,
    definition,
    describe,
    expand,
    parse_definition,
    sweep_id,
)
from ssd1b.presets import load_preset
from ssd1b.settings import HIRES_SETTINGS, HIRES_SIZES, PICTURE_SETTINGS, GenerationSettings, Preset
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.files import write_json
from ssd1b.weights.writing import save_folder
from tiny import DRAWABLE, random_weights


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "cells")) as opened:
        yield opened


def test_every_combination_is_a_cell_and_the_dear_axes_are_outer_loops() -> None:
    found = wanted(sweep("guidance=2,5", "steps=3,4", "seed=1,2", prompts=("a cube", "a cone")))
    settings = [
        (c.settings.prompt, c.settings.seed, c.settings.steps, c.settings.guidance_scale) for c in found
    ]
    assert settings == [
        (prompt, seed, steps, guidance)
        for prompt in ("a cube", "a cone") for seed in (1, 2) for steps in (3, 4) for guidance in (2, 5)
    ]  # fmt: skip
    assert len({cell.key for cell in found}) == len(found)


def test_of_axes_that_set_the_same_the_later_one_wins() -> None:
    for axes in (("preset=article-detail", "guidance=3"), ("guidance=3", "preset=article-detail")):
        (cell,) = wanted(sweep(*axes))
        assert cell.settings.guidance_scale == (3.0 if axes[1] == "guidance=3" else 14.5)


def test_words_are_replaced_in_prompt_and_negative_prompt() -> None:
    found = wanted(sweep("words=cube,cone", "negative=a cube||none"))
    told = [(cell.settings.prompt, cell.settings.negative_prompt) for cell in found]
    assert told == [("a cube", "a cube"), ("a cube", None), ("a cone", "a cone"), ("a cone", None)]
    with pytest.raises(InputError, match="'sphere' is not in the prompt 'a cube'"):
        wanted(sweep("words=sphere,cone"))


TIMESTEPS = ",".join(map(str, range(999, 974, -1)))
"""As many as the default number of steps."""

OTHER_SETTINGS = {
    "prompt": "a cone", "negative_prompt": "", "guidance_scale": 3.0, "guidance_rescale": 0.5,
    "guidance_interval": (0.0, 0.5), "feature_reuse": 0.1, "steps": 7, "sampler": "ddim",
    "schedule": "karras", "seed": 2, "width": 128, "height": 128, "original_size": (32, 32),
    "crop_top_left": (0, 8), "target_size": (32, 32),
    "loras": ({"file": {"sha256": "0" * 64, "path": "/a.safetensors"}},),
    "controls": ({"model": {"sha256": "0" * 64, "path": "/a.safetensors"},
                  "picture": {"sha256": "1" * 64, "path": "/b.png"}},),
    "image_prompts": ({"adapter": {"sha256": "0" * 64, "path": "/a.safetensors"},
                       "picture": {"sha256": "1" * 64, "path": "/b.png"},
                       "encoder": {"sha256": "2" * 64, "path": "/c.safetensors"}},),
    "prompt_editing": "on",
    "embeddings": (
        {"file": {"sha256": "0" * 64, "path": "/a.safetensors"}, "word": "cat", "vectors": 1},
    ),
    "init_image": {"sha256": "0" * 64, "path": "/a.png"}, "mask": {"sha256": "1" * 64, "path": "/b.png"},
    "strength": 0.5, "strength_steps": "comfyui", "resize_mode": "stretch",
    "mask_change": "black", "mask_blur": 4.0, "mask_content": "fill", "mask_area": "masked",
    "mask_padding": 8, "outpaint": "left=8", "outpaint_fill": "reflect",
    "variation_strength": 0.1, "variation_seed": 5, "hires_scale": 2.0, "hires_width": 128,
    "hires_height": 96, "hires_strength": 0.3, "hires_upscaler": "latent", "hires_steps": 3,
    "hires_sampler": "ddim", "hires_schedule": "karras", "hires_guidance_scale": 2.0,
    "hires_prompt": "a cube", "hires_negative_prompt": "y", "timesteps": TIMESTEPS,
    "gamma": 0.5, "seed_resize_width": 128, "seed_resize_height": 192,
}  # fmt: skip
"""Of each setting a value that is not the default."""


def key(
    what: Sweep, model: ModelDescription = FAKE, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> str:  # fmt: skip
    return next(expand(what, lambda name: model, device=torch.device(device), dtype=dtype)).key


def test_each_setting_decides_the_key() -> None:
    plain = sweep("seed=1")
    assert OTHER_SETTINGS.keys() == {each.name for each in fields(GenerationSettings)}
    masked = {name: OTHER_SETTINGS[name] for name in ("init_image", "mask", "width", "height")}
    start = {name: OTHER_SETTINGS[name] for name in ("init_image", "width", "height")}
    partners = {
        **dict.fromkeys(PICTURE_SETTINGS, start), **dict.fromkeys(("mask_blur", "mask_area"), masked),
        "variation_seed": {"variation_strength": 0.2},
        "seed_resize_width": {"seed_resize_height": 64}, "seed_resize_height": {"seed_resize_width": 64},
        **{name: {"hires_scale": 1.5} for name in HIRES_SETTINGS if name not in HIRES_SIZES},
    }  # fmt: skip
    changed = {
        name: replace(plain, settings={**partners.get(name, {}), name: value})
        for name, value in OTHER_SETTINGS.items()
    }
    changed["prompt"] = replace(plain, prompts=("a cone",))
    changed["seed"] = sweep("seed=2")
    assert len({key(plain), *map(key, changed.values())}) == len(OTHER_SETTINGS) + 1


def test_all_else_that_decides_the_picture_decides_the_key_and_nothing_more(monkeypatch) -> None:
    plain = sweep("seed=1")
    keys = {
        key(plain),
        key(plain, model=FAKE._replace(fingerprint="other")),
        key(plain, device="cuda"),
        key(plain, dtype=torch.bfloat16),
    }
    with monkeypatch.context() as patched:
        patched.setattr("ssd1b.jobs.job.version", lambda name: "0.0.0")
        keys.add(key(plain))
    with monkeypatch.context() as patched:
        patched.setattr("ssd1b.jobs.job.DRAWING", 10**6)
        keys.add(key(plain))
    assert len(keys) == 6
    assert (
        key(plain) == key(replace(plain, axes=(*plain.axes, parse_axis("steps=25")))) == key(sweep("seed=1"))
    )
    assert key(plain) == key(plain, model=FAKE._replace(path=Path("elsewhere")))
    assert key(plain) == key(replace(plain, model="by another name"))


def test_keys_are_those_of_stores_from_before(monkeypatch, store: Store) -> None:
    monkeypatch.setattr("ssd1b.jobs.job.version", lambda name: "0.1.0")
    assert key(sweep("seed=1")) == "46e41d6480aa9098b90950e4bbd02652ec7e9ff870467574bd0fd11f1d892552"
    found = {
        name: describe(name, store.file_digest, offline=True).fingerprint
        for name in ("mini-sdxl", "mini-ssd-1b")
    }
    assert found == {
        "mini-sdxl": "4930a8d61cdb86442d06f8eec46670c2516d63c2e3d1dc2cbbaf36711b6e399a",
        "mini-ssd-1b": "f5c99943d96f3c51d467c6ba70c71f0bb129afb81564da038bc604e2cbaa669d",
    }


def test_a_models_world_decides_no_key(tiny_model, tmp_path, store: Store) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    before = describe(str(model), store.file_digest, offline=True)
    file = model / "ssd1b.json"
    write_json(file, {**json.loads(file.read_text()), "world": "tabletop"})
    after = describe(str(model), store.file_digest, offline=True)
    assert (before.world, after.world) == (None, "tabletop")
    assert before.fingerprint == after.fingerprint
    assert describe("mini-ssd-1b", store.file_digest, offline=True).world == "tabletop"
    written = ModelInfo(layout=DRAWABLE, world="tabletop")
    save_folder(tmp_path / "written", written, random_weights(DRAWABLE))
    assert describe(str(tmp_path / "written"), store.file_digest, offline=True).world == "tabletop"
    write_json(file, {"world": 3})
    with pytest.raises(InputError, match=r"ssd1b\.json: world must be text, got 3"):
        describe(str(model), store.file_digest, offline=True)


def test_every_file_of_a_model_decides_its_fingerprint(tiny_model, tmp_path, store: Store) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)

    def fingerprint(prediction: str | None = None) -> str:
        return describe(str(model), store.file_digest, offline=True, prediction=prediction).fingerprint

    seen = [fingerprint(), fingerprint("v")]
    assert fingerprint() == seen[0]
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    about, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    other = tmp_path / "other"
    other.write_bytes(content)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    os.replace(other, weights)  # of the same size and time
    seen.append(fingerprint())
    (model / "notes.txt").write_text("one")
    seen.append(fingerprint())
    (model / "notes.txt").rename(model / "names.txt")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)


def test_a_second_sweep_draws_only_what_is_new(store: Store) -> None:
    first, again, more = Fake(), Fake(), Fake()
    run(store, sweep("guidance=2,5", "seed=1-3"), first)
    run(store, sweep("guidance=2,5", "seed=1-3"), again)
    run(store, sweep("guidance=2,5,9", "seed=1-3"), more)
    assert (first.drawn, again.drawn, more.drawn) == (6, 0, 3)
    assert len(store.sweeps()) == 2
    last = [*store.sweeps()][-1]
    assert [member.outcome.state for member in store.members(last) if member.outcome] == [DONE] * 9
    assert parse_definition(store.sweeps()[last]) == sweep("guidance=2,5,9", "seed=1-3")


def test_more_combinations_than_anybody_wants_are_refused_before_they_are_made() -> None:
    axes = tuple(parse_axis(f"{name}=1-1000") for name in ("seed", "steps"))
    with pytest.raises(InputError, match=f"2000000 combinations: allowed are {MAX_CELLS}.*23.1 days"):
        Sweep(prompts=("a cube", "a sphere"), axes=axes, model="fake")
    with pytest.raises(InputError, match="axis seed is given twice"):
        sweep("seed=1", "seed=2")
    with pytest.raises(InputError, match="no prompt"):
        sweep("seed=1", prompts=())


def test_a_sweep_comes_back_from_its_definition() -> None:
    axes = (
        "guidance-interval=0-1,0.2-0.8", "size=64,64x128", "words=cube,cone", "negative=none||a, b",
        "preset=article-detail", "model=one,other",
    )  # fmt: skip
    what = replace(sweep(*axes), preset=load_preset("model-card"), settings={"steps": 3})
    back = parse_definition(json.loads(json.dumps(definition(what))))
    assert wanted(back) == wanted(what)
    places = [0] * len(what.all_axes)
    assert back.request(places).settings["steps"] == what.request(places).settings["steps"] == 25


def test_an_identity_is_that_of_axes_and_cells() -> None:
    one, other = sweep("seed=1,2"), sweep("seed=2,1")
    assert sweep_id(one, wanted(one)) == sweep_id(one, wanted(one)) != sweep_id(other, wanted(other))


def test_a_random_seed_is_drawn_once_for_all_cells() -> None:
    asked = replace(sweep("steps=3,4", prompts=("a cube", "a cone")), settings={"seed": -1})
    assert len({cell.settings.seed for cell in wanted(asked)}) == 1
    preset = Preset(name="p", source="", settings={"seed": -1})
    asked = replace(asked, settings={}, preset=preset)
    assert len({cell.settings.seed for cell in wanted(asked)}) == 1


def test_axes_of_loras(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    a, b = (tmp_path / f"{name}.safetensors" for name in ("a", "b"))
    both = sweep("seed=1", f"lora=none||{a}:0.5||{a} + {b}:0.2:1")
    chosen = [both.request(places).settings["loras"] for places in both.places]
    assert [[(each.name, each.unet, each.text) for each in loras] for loras in chosen] == [
        [], [("a", 0.5, 0.5)], [("a", 1, 1), ("b", 0.2, 1)]
    ]  # fmt: skip
    plain = replace(sweep("seed=1"), settings={"loras": chosen[2]})
    axes = (parse_axis("lora-strength=0-1 [3]"), parse_axis("lora-strength.b=2"))
    scaled = replace(plain, axes=(*plain.axes, *axes))
    found = [request.settings["loras"] for request in map(scaled.request, scaled.places)]
    assert [[each.unet for each in loras] for loras in found] == [[0, 0], [0.5, 0.2], [1, 0.4]]
    read = parse_definition(json.loads(json.dumps(definition(scaled))))
    assert [read.request(places).settings["loras"] for places in read.places] == found
    with pytest.raises(InputError, match="lora-strength: there is no LoRA"):
        next(map(sweep("lora-strength=1").request, sweep("lora-strength=1").places))
