"""``mini-ssd-1b-turbo``, a built-in LoRA of another model, wherever a model's name is accepted."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from server_workers import Plan
from ssd1b.files import hash_file
from ssd1b.images import read_recipe
from ssd1b.loras import lora_of
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.presets import SPEEDS
from ssd1b.server.options import ServerOptions
from ssd1b.server.routes.settings import ModelSettings
from ssd1b.server.routes.settings import settings as list_settings
from ssd1b.server.service import Service
from ssd1b.tabletop.judge.evaluation import cases, score
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.weights.hub import LORAS, available_models, known_source

TURBO, BASE = "mini-ssd-1b-turbo", "mini-ssd-1b"
RECOMMENDED = {"sampler": "lcm", "schedule": "trailing", "steps": 4, "guidance_scale": 1.0}


def test_the_model_is_its_base_with_the_lora_and_others_come_on_top() -> None:
    turbo, base = Model.find(TURBO, offline=True), Model.find(BASE, offline=True)
    assert turbo.info.settings == RECOMMENDED and turbo.info.world == "tabletop"
    assert turbo.layout == base.layout and turbo.identity.source == TURBO
    assert turbo.digest(hash_file) != base.digest(hash_file)
    assert turbo.version("unet") != base.version("unet") and turbo.version("vae") == base.version("vae")

    own = lora_of(LORAS[TURBO])
    expected = base.with_loras([own]).network("unet").state_dict()
    found = turbo.network("unet").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    against = turbo.with_loras([lora_of(LORAS[TURBO], unet=-1.0)]).network("unet", dtype=torch.float32)
    plain = base.network("unet", dtype=torch.float32).state_dict()
    assert all(
        torch.allclose(tensor, plain[name], atol=1e-6) for name, tensor in against.state_dict().items()
    )


def test_generate_draws_in_four_passes_and_rerun_repeats_it(run, tmp_path: Path) -> None:
    """Also if a LoRA was merged and taken off between two images, as a server does."""
    call = ["generate", "a large red metal sphere on a blue background", "--seed", 3, "--device", "cpu"]
    for name, options in (("one.png", ["--model", TURBO]), ("two.png", ["--speed", "turbo"])):
        done = run(*call, *options, "--out", name)
        assert done.code == 0, done.err
        recipe = read_recipe(tmp_path / name)
        assert recipe.model.source == TURBO
        assert {key: getattr(recipe.settings, key) for key in RECOMMENDED} == RECOMMENDED
    assert done.err.startswith(f"speed turbo: {SPEEDS['turbo'].price}")
    again = run("rerun", tmp_path / "one.png", "--out", "again.png")
    assert (again.code, again.err) == (0, "bit-equal: every pixel is the same\n")

    pipeline = Pipeline.load(TURBO, device="cpu", offline=True)
    settings = pipeline.settings("a cone", seed=1)
    first, _, last = (
        np.asarray(pipeline.generate("a cone", seed=1, loras=loras)[0].image)
        for loras in ((), (lora_of(LORAS[TURBO], unet=0.5),), ())
    )
    assert settings.steps == 4 and np.array_equal(first, last)


def test_it_is_listed_and_inspected(run) -> None:
    assert known_source(TURBO) == "built-in"
    assert [each.ready for each in available_models() if each.name == TURBO] == [True]
    description = json.loads(run("inspect", TURBO, "--json").out)
    assert RECOMMENDED.items() <= description["settings"].items() and description["layout"] == BASE
    assert description["few_steps"]["kind"] == TURBO and description["few_steps"]["settings"] == RECOMMENDED
    assert "few steps    mini-ssd-1b-turbo: sampler lcm" in run("inspect", TURBO).out
    assert any(LORAS[TURBO].name in note for note in description["notes"])


def test_the_server_serves_it_with_the_advice_of_its_kind(tmp_path: Path) -> None:
    async def answers() -> tuple[list[object], dict[str, ModelSettings], list[list[str]]]:
        service = Service(ServerOptions(store=str(tmp_path), model=(TURBO, BASE), workers=1), Plan().start)
        await service.start()
        try:
            (made,) = await service.settings(TURBO, "a cube", None, {"seed": 1})
            answer = await list_settings(service)
            far = replace(made, steps=30, guidance_scale=7.0, sampler="dpmpp_2m", negative_prompt="blurry")
            off = replace(made, negative_prompt="blurry")
            lines = [service.advice(TURBO, each) for each in (made, off, far)]
            return [getattr(made, name) for name in RECOMMENDED], answer.models, lines
        finally:
            await service.close()

    used, models, (none, ignored, far) = asyncio.run(answers())
    assert used == [*RECOMMENDED.values()]
    ranges = {
        name: {each.setting: (each.low, each.high) for each in model.advice} for name, model in models.items()
    }
    assert ranges == {
        TURBO: {"guidance_scale": (1, 1), "steps": (4, 8)},
        BASE: {"guidance_scale": (2, 19), "steps": (15, 25)},
    }  # fmt: skip
    assert "lcm" in models[TURBO].samplers and "unipc" in models[BASE].samplers
    assert none == [] and ["negative prompt" in line for line in ignored] == [True]
    assert [line.split()[0] for line in far] == ["guidance_scale", "steps", "sampler"]
    assert "mini-ssd-1b-turbo is made for 4 to 8" in far[1]


@pytest.mark.parametrize("model", ["mini-sdxl", "ssd-1b", "no-such"])
def test_speed_turbo_needs_a_model_with_a_variant(run, tmp_path: Path, model: str) -> None:
    result = run("generate", "a cube", "--speed", "turbo", "--model", model, "--out", "x.png")
    assert result.code == 2 and f"'{model}' has no few-step variant, mini-ssd-1b has" in result.err
    assert len(result.err.strip().splitlines()) == 1 and not Path(tmp_path, "x.png").exists()


def test_what_it_draws_in_four_passes_is_right() -> None:
    """Of 200 captions 66 % are; of the base model's images with as many passes 25 %."""
    chosen = cases(24)
    pipeline = Pipeline.load(TURBO, device="cpu", offline=True)
    images = [
        np.asarray(each.image)
        for case in chosen for each in pipeline.generate(case.caption, seed=case.seed)
    ]  # fmt: skip
    read = load_judge().read(np.stack(images))
    right = [score(case.scene, seen).values["right"] for case, seen in zip(chosen, read, strict=True)]
    assert np.mean(right) >= 0.4


def test_a_training_of_the_miniature_starts_from_the_base(run) -> None:
    result = run("tabletop", "train", "unet", "--from", TURBO, "--out", "runs")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "mini-ssd-1b-turbo is a LoRA of mini-ssd-1b" in result.err
