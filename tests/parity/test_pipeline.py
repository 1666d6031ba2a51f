"""Prompt to picture beside diffusers: the same folder, the same noise, the same picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from ssd1b.layouts import MINI_SDXL, SSD_1B_MINI, ModelLayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.tokenizer import END
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.miniature.tokenizer import train_tokenizer
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.vocabulary import write_tokenizer
from ssd1b.weights.writing import save_folder

PROMPT = "a large red metal sphere on a blue background"
LAYOUTS = {"sdxl": MINI_SDXL, "ssd-1b": replace(MINI_SDXL, unet=SSD_1B_MINI)}


def write_model(folder: Path, layout: ModelLayout) -> Path:
    torch.manual_seed(0)
    parts = {
        "unet": UNet(layout.unet),
        "vae": VAE(layout.vae),
        "text_encoder": TextEncoder(layout.text_encoder),
        "text_encoder_2": TextEncoder(layout.text_encoder_2),
    }
    tokenizers = {"text_encoder": folder / "t1", "text_encoder_2": folder / "t2"}
    write_tokenizer(tokenizers["text_encoder"], *train_tokenizer(), END)
    write_tokenizer(tokenizers["text_encoder_2"], *train_tokenizer(), "!")
    info = ModelInfo(layout=layout, tokenizers=tokenizers, settings={"steps": 3, "guidance_scale": 5.0})
    save_folder(folder / "model", info, {name: part.state_dict() for name, part in parts.items()})
    return folder / "model"


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Pipeline, StableDiffusionXLPipeline]:
    folder = write_model(tmp_path_factory.mktemp("model"), LAYOUTS[request.param])
    oracle = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    oracle.set_progress_bar_config(disable=True)
    return Pipeline.load(str(folder), device="cpu", dtype="fp32"), oracle


def theirs(oracle: StableDiffusionXLPipeline, prompt: str, seed: int = 5, **given: object) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(seed)
    given = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 128, "width": 128} | given
    return np.array(oracle(prompt, generator=generator, **given).images[0]).astype(int)


def ours(pipeline: Pipeline, prompt: str, **given: object) -> np.ndarray:
    return np.array(pipeline.generate(prompt, seed=5, **given)[0].image).astype(int)


@pytest.mark.parametrize(
    ("our_settings", "their_settings"),
    [
        ({}, {}),
        ({"negative_prompt": ""}, {"negative_prompt": ""}),
        ({"negative_prompt": "blurry, low quality"}, {"negative_prompt": "blurry, low quality"}),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
        ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
        ({"width": 96, "height": 72}, {"width": 96, "height": 72}),
        (
            {"original_size": (256, 128), "crop_top_left": (16, 8), "target_size": (64, 64)},
            {"original_size": (256, 128), "crops_coords_top_left": (16, 8), "target_size": (64, 64)},
        ),
    ],
    ids=["plain", "empty negative", "negative", "no guidance", "rescale", "odd size", "micro-conditioning"],
)
def test_same_picture(
    pair: tuple[Pipeline, StableDiffusionXLPipeline], our_settings: dict, their_settings: dict
) -> None:
    pipeline, oracle = pair
    difference = np.abs(ours(pipeline, PROMPT, **our_settings) - theirs(oracle, PROMPT, **their_settings))
    assert difference.max() <= 1, "at most the rounding of the last bit"


def test_no_negative_prompt_is_not_an_empty_one(pair: tuple[Pipeline, StableDiffusionXLPipeline]) -> None:
    pipeline, _ = pair
    assert not np.array_equal(ours(pipeline, PROMPT), ours(pipeline, PROMPT, negative_prompt=""))


def test_a_seed_gives_the_same_picture_in_every_batch(
    pair: tuple[Pipeline, StableDiffusionXLPipeline],
) -> None:
    pipeline, _ = pair
    batch = [
        pipeline.settings(text, seed=seed) for text, seed in ((PROMPT, 5), ("a cube", 6), ("", 7)) if text
    ]
    *_, last = pipeline.steps(batch)
    together = np.array(pipeline.pictures(last.latents, batch)[0].image).astype(int)
    assert np.abs(together - ours(pipeline, PROMPT)).max() <= 1


def test_guidance_one_and_steps_outside_the_interval_run_one_forward(
    pair: tuple[Pipeline, StableDiffusionXLPipeline],
) -> None:
    pipeline, _ = pair
    sizes: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        pipeline.generate(PROMPT, seed=1, steps=4)
        assert sizes == [2, 2, 2, 2]
        sizes.clear()
        pipeline.generate(PROMPT, seed=1, steps=4, guidance_scale=1.0)
        assert sizes == [1, 1, 1, 1]
        sizes.clear()
        pipeline.generate(PROMPT, seed=1, steps=4, guidance_interval=(0.2, 0.6))
        assert sorted(sizes) == [1, 1, 2, 2]
    finally:
        hook.remove()


def test_who_iterates_sees_every_step_and_may_stop(pair: tuple[Pipeline, StableDiffusionXLPipeline]) -> None:
    pipeline, _ = pair
    steps = pipeline.steps([pipeline.settings(PROMPT, seed=1, steps=5)])
    first = next(steps)
    assert first.index == 0
    assert pipeline.preview(first.denoised)[0].size == (128, 128)
    steps.close()


def test_pictures_carry_their_recipe(pair: tuple[Pipeline, StableDiffusionXLPipeline]) -> None:
    pipeline, _ = pair
    recipe = pipeline.generate(PROMPT, seed=9, sampler="DPM++ 2M Karras", count=2)[1].recipe
    assert recipe.settings.seed == 10
    assert (recipe.settings.sampler, recipe.settings.schedule) == ("dpmpp_2m", "karras")
    assert recipe.settings.steps == 3, "the model's own default"
    assert recipe.dtype == "float32"
