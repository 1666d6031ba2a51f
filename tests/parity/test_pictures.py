"""Generation from a picture beside diffusers: same weights, noise, picture and mask, the same trajectory."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
from diffusers.pipelines.stable_diffusion_xl import (
    pipeline_stable_diffusion_xl_img2img as img2img,
)
from diffusers.pipelines.stable_diffusion_xl import (
    pipeline_stable_diffusion_xl_inpaint as inpaint,
)
from PIL import Image
from tests.parity.test_pipeline import PROMPT, write_model
from torch import Tensor

from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.layouts import MINI_SDXL, SSD_1B_MINI
from ssd1b.pipeline import Pipeline
from ssd1b.sampler_names import SAMPLERS

SIDE = 64
LAYOUT = replace(MINI_SDXL, unet=SSD_1B_MINI)
INPAINTING = replace(MINI_SDXL, unet=replace(SSD_1B_MINI, in_channels=9))
STRENGTHS = (0.34, 0.75)
VARIANCE_EXPLODING = ("euler", "euler_ancestral", "heun", "dpmpp_sde")
"""Samplers whose latents are ``x0 + sigma * noise`` in diffusers, too; the others' have unit variance."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), LAYOUT)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(str(folder), device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def inpainting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("inpainting"), INPAINTING)


@pytest.fixture(scope="module")
def changer(folder: Path) -> Any:
    oracle = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    oracle.set_progress_bar_config(disable=True)
    return oracle


@pytest.fixture(scope="module")
def painter(folder: Path) -> Any:
    oracle = StableDiffusionXLInpaintPipeline.from_pretrained(folder, local_files_only=True)
    oracle.set_progress_bar_config(disable=True)
    return oracle


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    levels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    levels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    levels[16:48, 8:40] = 255
    Image.fromarray(levels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture(autouse=True)
def means(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws latents from the encoder's distribution; ours are its mean."""
    for module in (img2img, inpaint):
        monkeypatch.setattr(module, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mode())


def theirs(oracle: Any, sampler: str, steps: int, output: str = "latent", **given: Any) -> list[Tensor]:
    """The latents after each step, of which samplers of second order have two in diffusers."""
    config = NoiseSchedule().to_config()
    options = {"algorithm_type": "sde-dpmsolver++"} if sampler == "dpmpp_2m_sde" else {}
    oracle.scheduler = getattr(diffusers, SAMPLERS[sampler].diffusers).from_config(config, **options)
    found: list[Tensor] = []

    def keep(pipe: Any, index: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        found.append(kept["latents"].clone())
        return kept

    oracle(
        PROMPT, num_inference_steps=steps, guidance_scale=5.0, generator=torch.Generator().manual_seed(5),
        callback_on_step_end=keep, output_type=output, **given,
    )  # fmt: skip
    return [*found[1::2], found[-1]] if sampler == "heun" else found


def ours(pipeline: Pipeline, sampler: str, steps: int, **given: Any) -> list[Tensor]:
    settings = pipeline.settings(PROMPT, seed=5, steps=steps, guidance_scale=5.0, sampler=sampler, **given)
    assert (settings.width, settings.height) == (SIDE, SIDE), "those of the picture"
    scaled = sampler not in VARIANCE_EXPLODING
    return [
        step.latents / (math.hypot(step.sigma, 1.0) if scaled else 1.0) for step in pipeline.steps([settings])
    ]


def same(ours: list[Tensor], theirs: list[Tensor], where: Tensor | None = None) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        difference = (mine - other).abs() / max(1.0, other.abs().max().item())
        assert (difference if where is None else difference * where).max() <= 1e-4


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "ddim", "dpmpp_2m", "unipc"])
def test_image_to_image(
    changer: Any, pipeline: Pipeline, picture: Path, sampler: str, strength: float
) -> None:
    expected = theirs(changer, sampler, 4, image=Image.open(picture), strength=strength)
    found = ours(pipeline, sampler, 4, init_image=picture, strength=strength)
    assert len(found) == int(4 * strength)
    same(found, expected)


@pytest.mark.parametrize("strength", [0.75, 1.0])
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "ddim", "dpmpp_2m", "unipc"])
def test_inpainting_with_any_unet(
    painter: Any, pipeline: Pipeline, picture: Path, mask: Path, sampler: str, strength: float
) -> None:
    expected = theirs(
        painter, sampler, 4, image=Image.open(picture), mask_image=Image.open(mask), strength=strength,
        width=SIDE, height=SIDE,
    )  # fmt: skip
    found = ours(pipeline, sampler, 4, init_image=picture, mask=mask, strength=strength)
    # Outside the mask a stochastic sampler, and a start from noise, have other latents between the steps; the
    # network does not see them.
    free = torch.zeros(1, 1, 8, 8)
    free[..., 2:6, 1:5] = 1
    same(found, expected, free if sampler == "euler_ancestral" or strength == 1 else None)
    same(found[-1:], expected[-1:])


@pytest.mark.parametrize("strength", [0.75, 1.0])
def test_inpainting_with_a_unet_for_it(
    inpainting_folder: Path, picture: Path, mask: Path, strength: float
) -> None:
    pipeline = Pipeline.load(str(inpainting_folder), device="cpu", dtype="fp32")
    oracle = StableDiffusionXLInpaintPipeline.from_pretrained(inpainting_folder, local_files_only=True)
    oracle.set_progress_bar_config(disable=True)
    expected = theirs(
        oracle, "euler", 4, image=Image.open(picture), mask_image=Image.open(mask), strength=strength,
        width=SIDE, height=SIDE,
    )  # fmt: skip
    same(ours(pipeline, "euler", 4, init_image=picture, mask=mask, strength=strength), expected)


def test_the_other_programs_numbers_of_steps(changer: Any, pipeline: Pipeline, picture: Path) -> None:
    """AUTOMATIC1111 runs one step more of the same schedule, ComfyUI the given number of a longer one."""
    photo = Image.open(picture)
    half = {"init_image": picture, "strength": 0.5}
    one_more = theirs(changer, "euler", 8, image=photo, strength=5 / 8)
    same(ours(pipeline, "euler", 8, strength_steps="a1111", **half), one_more)
    longer = theirs(changer, "euler", 16, image=photo, strength=0.5)
    same(ours(pipeline, "euler", 8, strength_steps="comfyui", **half), longer)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("upscaler", ["lanczos", "latent-bicubic-antialiased"])
def test_the_second_pass_is_image_to_image(
    changer: Any, pipeline: Pipeline, sampler: str, upscaler: str
) -> None:
    settings = pipeline.settings(
        PROMPT, seed=5, steps=3, guidance_scale=5.0, sampler=sampler, width=SIDE, height=SIDE,
        hires_scale=1.5, hires_steps=4, hires_strength=0.5, hires_upscaler=upscaler,
    )  # fmt: skip
    steps = [*pipeline.steps([settings])]
    first, size = steps[2].latents, (SIDE * 3 // 2, SIDE * 3 // 2)
    enlarged = (
        pipeline.preview(first)[0].resize(size, Image.Resampling.LANCZOS)
        if upscaler == "lanczos"
        else torch.nn.functional.interpolate(first, scale_factor=1.5, mode="bicubic", antialias=True)
    )
    expected = theirs(changer, sampler, 8, image=enlarged, strength=0.5)
    scaled = sampler not in VARIANCE_EXPLODING
    found = [step.latents / (math.hypot(step.sigma, 1.0) if scaled else 1.0) for step in steps[3:]]
    same(found, expected)


def test_the_masked_area_alone(painter: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    levels = np.random.default_rng(4).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(levels).resize((160, 120), Image.Resampling.BICUBIC)
    hole = Image.new("L", photo.size)
    hole.paste(255, (88, 40, 104, 56))
    photo.save(tmp_path / "photo.png")
    hole.save(tmp_path / "hole.png")
    given = {
        "image": photo, "mask_image": hole, "strength": 0.75, "width": SIDE, "height": SIDE,
        "padding_mask_crop": 8,
    }  # fmt: skip
    expected = theirs(painter, "euler", 4, output="pil", **given)
    mine = {
        "init_image": tmp_path / "photo.png", "mask": tmp_path / "hole.png", "strength": 0.75,
        "width": SIDE, "height": SIDE, "mask_area": "masked", "mask_padding": 8,
    }  # fmt: skip
    same(ours(pipeline, "euler", 4, **mine), expected)
    (image,) = painter(
        PROMPT, num_inference_steps=4, guidance_scale=5.0, generator=torch.Generator().manual_seed(5), **given
    ).images
    (made,) = pipeline.generate(
        PROMPT, seed=5, steps=4, guidance_scale=5.0, sampler="euler", **mine
    )  # fmt: skip
    assert np.abs(np.asarray(made.image).astype(int) - np.asarray(image)).max() <= 1


def test_the_encoder_in_tiles_is_close(pipeline: Pipeline) -> None:
    pixels = torch.rand(1, 3, 192, 160) * 2 - 1
    whole, tiled = pipeline.vae.encode_mean(pixels), pipeline.vae.encode_mean(pixels, tile=12)
    assert whole.shape == tiled.shape == (1, 4, 24, 20)
    assert (whole - tiled).abs().mean() < 0.2 * whole.std()
