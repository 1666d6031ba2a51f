"""Generation from a picture: settings, keys, recipes, and what a mask keeps."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssd1b.decoding import read_source
from ssd1b.diffusion.inpainting import cell_mask, free_cells
from ssd1b.diffusion.noise import noise_source
from ssd1b.diffusion.samplers import SAMPLERS
from ssd1b.diffusion.schedule import steps_for
from ssd1b.errors import InputError, NotFoundError
from ssd1b.images import to_pixels
from ssd1b.inputs import InputFile
from ssd1b.jobs.job import make_job
from ssd1b.pipeline import Pipeline
from ssd1b.presets import load_preset
from ssd1b.recipe import read_json, read_parameters, write_json, write_parameters
from ssd1b.settings import DEFAULT_STRENGTH, GenerationSettings, resolve_settings

PROMPT = "a large red metal sphere on a blue background"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    levels = np.random.default_rng(1).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    levels = np.zeros((64, 72), dtype=np.uint8)
    levels[20:41, 13:38] = 255
    Image.fromarray(levels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("mini-ssd-1b", device="cpu", dtype="fp32")


def settings(**given: Any) -> GenerationSettings:
    return resolve_settings("x", family="sdxl", model_defaults={}, preset=None, **({"seed": 7} | given))


@pytest.mark.parametrize(
    ("rule", "strength", "expected"),
    [
        ("diffusers", 0.5, (20, 10, False)),
        ("diffusers", 0.99, (20, 19, False)),
        ("diffusers", 1.0, (20, 20, True)),
        ("a1111", 0.5, (20, 11, False)),
        ("a1111", 0.0, (20, 1, False)),
        ("a1111", 1.0, (20, 20, False)),
        ("comfyui", 0.5, (40, 20, False)),
        ("comfyui", 0.3, (66, 20, False)),
        ("comfyui", 1.0, (20, 20, False)),
    ],
)
def test_twenty_steps_in_three_programs(picture: Path, rule: str, strength: float, expected: tuple) -> None:
    chosen = settings(init_image=picture, strength=strength, strength_steps=rule, steps=20)
    assert chosen.start == expected


def test_text_to_image_runs_the_whole_schedule() -> None:
    assert settings(steps=20).start == (20, 20, True)


def test_strength_and_size_follow_the_picture(picture: Path) -> None:
    found = settings(init_image=picture)
    assert (found.width, found.height, found.strength) == (72, 64, DEFAULT_STRENGTH)
    assert found.original_size == (64, 72)
    assert settings(init_image=str(picture), width=128, height=128).width == 128
    assert replace(found, seed=8).init_image == found.init_image


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"strength": 0.5}, r"strength needs init_image \(--from\)"),
        ({"mask": "picture.png"}, r"mask needs init_image \(--from\)"),
        ({"init_image": "missing.png"}, r"missing\.png"),
        ({"init_image": "picture.png", "strength": 1.5}, "strength is 1.5: it must be a number from 0 to 1"),
        ({"init_image": "picture.png", "strength": float("nan")}, "strength is nan"),
        ({"init_image": "picture.png", "strength": 0.01}, "strength is 0.01: of 25 steps none is left"),
        ({"init_image": "picture.png", "strength": 0.0, "strength_steps": "comfyui"}, "none is left"),
        ({"init_image": "picture.png", "strength": 1e-9, "strength_steps": "comfyui"}, "more than 10000"),
        ({"init_image": "picture.png", "strength_steps": "comfy"}, "did you mean 'comfyui'"),
        ({"init_image": "picture.png", "resize_mode": "cropped"}, "unknown resize mode 'cropped': did you"),
        ({"init_image": 5}, "init_image is 5"),
        ({"init_image": {"sha256": "x", "path": "y"}}, "64 hexadecimal digits"),
    ],
)
def test_errors_are_one_line(
    picture: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(picture.parent)
    with pytest.raises(InputError, match=words) as error:
        settings(**given)
    assert "\n" not in str(error.value)


def test_a_preset_may_name_a_picture(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "sketch.toml").write_text(
        f"[settings]\ninit_image = {json.dumps(str(picture))}\nstrength = 0.4"
    )
    preset = load_preset(str(tmp_path / "sketch.toml"))
    found = resolve_settings("x", family="sdxl", model_defaults={}, preset=preset, seed=1)
    assert (found.width, found.strength) == (72, 0.4)


def key(settings: GenerationSettings, pipeline: Pipeline) -> str:
    tokenizers = (pipeline.text.tokenizer, pipeline.text.tokenizer_2)
    return make_job("m", settings, fingerprint="f", tokenizers=tokenizers, environment={}).key


def test_keys_depend_on_content_alone(picture: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    (tmp_path / "copy.png").write_bytes(picture.read_bytes())
    first, second = settings(init_image=picture), settings(init_image=tmp_path / "copy.png")
    assert key(first, pipeline) == key(second, pipeline)
    Image.new("RGB", (72, 64)).save(tmp_path / "other.png")
    assert key(settings(init_image=tmp_path / "other.png"), pipeline) != key(first, pipeline)
    assert key(replace(first, strength=0.7), pipeline) != key(first, pipeline)


def test_keys_of_text_to_image_are_what_they_were(pipeline: Pipeline) -> None:
    expected = "e3c4e9bb3d946abd3c36b59cb3494fa0189e1974868525da27eb2da45887fadc"
    assert key(settings(), pipeline) == expected


def test_recipes_name_the_picture_and_older_ones_have_none(picture: Path, pipeline: Pipeline) -> None:
    recipe = pipeline.recipe(settings(init_image=picture, strength=0.35))
    table = json.loads(write_json(recipe))
    assert table["settings"]["init_image"] == asdict(InputFile.of(picture, most=10**6))
    assert read_json(json.dumps(table)) == recipe
    assert "Denoising strength: 0.35" in write_parameters(recipe)
    assert str(picture.parent) not in write_parameters(recipe), "the text that others show has no path"
    older = json.loads(write_json(pipeline.recipe(settings())))
    for name in ("init_image", "mask", "strength", "strength_steps", "resize_mode"):
        del older["settings"][name]
    assert read_json(json.dumps(older)).settings == settings()
    assert "Denoising" not in write_parameters(pipeline.recipe(settings()))


def test_the_strength_of_a_text_is_used_with_a_picture(picture: Path) -> None:
    text = read_parameters("x\nSteps: 20, Sampler: Euler, Seed: 1, Denoising strength: 0.45")
    assert "strength" not in text.settings()
    assert "Denoising strength" in " ".join(text.unreproduced())
    file = InputFile.of(picture, most=10**6)
    assert settings(**text.settings(file)).start == (20, 10, False), "one more than diffusers' 9"


def test_all_strength_is_text_to_image(picture: Path, pipeline: Pipeline) -> None:
    """At strength 1 nothing is left of the picture: the noise is that of the same seed without one."""
    common = {"seed": 3, "steps": 2, "width": 72, "height": 64}
    text = pipeline.generate(PROMPT, **common)[0].image
    assert (
        pipeline.generate(PROMPT, init_image=picture, strength=1.0, **common)[0].image.tobytes()
        == text.tobytes()
    )
    less = pipeline.generate(PROMPT, init_image=picture, strength=0.5, **common)[0].image
    assert less.tobytes() != text.tobytes()


def test_the_noise_is_the_seeds_own(picture: Path, pipeline: Pipeline) -> None:
    """The first latents are ``z + sigma * noise``; the step of Euler's method starts from them."""
    inputs: list[torch.Tensor] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    chosen = pipeline.settings(PROMPT, seed=4, steps=4, strength=0.5, init_image=picture, guidance_scale=1.0)
    try:
        step = next(iter(pipeline.steps([chosen])))
    finally:
        hook.remove()
    clean = pipeline.vae.encode_mean(to_pixels(Image.open(picture)))
    noise = noise_source([4], 8, 9, pipeline.device)()
    sigma = (
        steps_for(
            pipeline.info.noise_schedule, 4, grid=SAMPLERS[chosen.sampler].grid, schedule=chosen.schedule
        )
        .last(2)
        .sigmas[0]
    )
    assert sigma > step.sigma
    torch.testing.assert_close(inputs[0], (clean + sigma * noise) / math.hypot(sigma, 1))


@pytest.mark.parametrize(
    "sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "unipc", "lcm"]
)
def test_what_a_mask_keeps_keeps_its_bits(
    picture: Path, mask: Path, pipeline: Pipeline, sampler: str
) -> None:
    (made,) = pipeline.generate(
        PROMPT, seed=1, steps=4, sampler=sampler, init_image=picture, mask=mask, strength=0.8
    )
    before, after = np.array(Image.open(picture)), np.array(made.image)
    kept = np.array(Image.open(mask)) == 0
    assert (before[kept] == after[kept]).all()
    assert (before[~kept] != after[~kept]).mean() > 0.5


def test_grey_changes_less_than_white(picture: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    levels = np.full((64, 72), 255, dtype=np.uint8)
    levels[:, :24], levels[:, 24:48] = 0, 64
    Image.fromarray(levels).save(tmp_path / "soft.png")
    chosen = pipeline.settings(
        PROMPT,
        seed=1,
        steps=8,
        init_image=picture,
        mask=tmp_path / "soft.png",
        strength=1.0,
        guidance_scale=1.0,
    )  # fmt: skip
    steps = [*pipeline.steps([chosen])]
    clean = pipeline.vae.encode_mean(to_pixels(Image.open(picture)))
    change = (steps[-1].latents - clean).abs().mean(dim=(0, 1, 2))
    assert change[:3].max() == 0
    assert 0 < change[3:6].mean() < change[6:].mean()


def test_a_cell_is_free_in_its_share_of_the_run() -> None:
    mask = torch.tensor([0.0, 0.01, 0.25, 0.5, 1.0]).view(1, 1, 1, 5)
    free = torch.stack([free_cells(mask, step, 4).flatten() for step in range(4)])
    assert free.sum(dim=0).tolist() == [0, 1, 1, 2, 4]
    assert free[-1].tolist() == [0, 1, 1, 1, 1], "the last steps"


def test_the_thinnest_stroke_reaches_its_cell() -> None:
    levels = torch.zeros(1, 1, 16, 16)
    levels[0, 0, 3, :8] = 1
    assert cell_mask(levels, 8).flatten().tolist() == [1, 0, 0, 0]


def test_each_image_of_a_batch_has_its_own_picture(
    picture: Path, mask: Path, tmp_path: Path, pipeline: Pipeline
) -> None:
    Image.new("RGB", (72, 64), "green").save(tmp_path / "green.png")
    common = {"seed": 2, "steps": 4, "strength": 0.5}
    batch = [
        pipeline.settings(PROMPT, init_image=picture, mask=mask, **common),
        pipeline.settings(PROMPT, init_image=tmp_path / "green.png", **common),
    ]
    together = pipeline.draw(batch)
    for chosen, made in zip(batch, together, strict=True):
        alone = np.array(pipeline.draw([chosen])[0].image).astype(int)
        assert np.abs(np.array(made.image).astype(int) - alone).max() <= 1


def test_a_picture_that_changed_is_refused_before_the_first_step(picture: Path, pipeline: Pipeline) -> None:
    chosen = pipeline.settings(PROMPT, seed=1, steps=2, init_image=picture)
    picture.unlink()
    read_source.cache_clear()
    with pytest.raises(NotFoundError, match=r"picture\.png"):
        next(iter(pipeline.steps([chosen])))
