"""Images with IP-Adapters are diffusers': plain and plus, several at once, in parts of UNet and steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from tests.parity.test_pipeline import PROMPT, write_model
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from image_prompt_files import VISION, loud, write_adapter, write_encoder
from ssd1b.adapters.ip_adapters import block_names
from ssd1b.image_prompts import ImagePrompt, image_prompt_of
from ssd1b.inputs import InputFile
from ssd1b.layouts import MINI_SDXL, SDXL_MINI, SSD_1B_MINI, UNetLayout
from ssd1b.models.vision import ImageEncoder, vision_config
from ssd1b.pipeline import Pipeline
from ssd1b.speed.image_prompting import clip_pixels

SIDE = 64
STEPS = 4
CARRIED = [
    1, 3, 5, 7, 9, 11, 13, 21, 29, 31, 33, 41,
    49, 51, 53, 61, 69, 71, 73, 81, *range(89, 109, 2), 109, 111, 113, 117,
]  # fmt: skip
"""Numbers in a file for SDXL of SSD-1B's cross-attentions, in the order of a file for SSD-1B."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, an image encoder, three IP-Adapters and two pictures."""
    folder = tmp_path_factory.mktemp("prompting")
    for name, unet in {"sdxl": SDXL_MINI, "ssd-1b": SSD_1B_MINI}.items():
        (folder / name).mkdir()
        write_model(folder / name, replace(MINI_SDXL, unet=unet))
    write_encoder(folder)
    for seed, name in enumerate(("plain", "other", "plus")):
        write_adapter(folder / f"{name}.safetensors", plus=name == "plus", seed=seed)
    for seed, name in enumerate("ab"):
        levels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((72, 48), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def pipelines(folder: Path) -> dict[str, Pipeline]:
    return {
        name: Pipeline.load(str(folder / name / "model"), device="cpu", dtype="fp32")
        for name in ("sdxl", "ssd-1b")
    }


@pytest.fixture(scope="module")
def encoder(folder: Path) -> CLIPVisionModelWithProjection:
    oracle = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_config(VISION))).eval()
    ours = ImageEncoder(VISION)
    loud(ours, 1)
    oracle.vision_model.load_state_dict(ours.vision_model.state_dict(), strict=False)
    oracle.visual_projection.load_state_dict(ours.visual_projection.state_dict())
    return oracle


def prompt(folder: Path, name: str, picture: str = "a", **fields: Any) -> ImagePrompt:
    return image_prompt_of(folder / f"{name}.safetensors", folder / f"{picture}.png", **fields)


def ours(pipeline: Pipeline, *prompts: ImagePrompt, **settings: Any) -> Tensor:
    chosen = {"seed": 5, "steps": STEPS, "width": SIDE, "height": SIDE, "guidance_scale": 5.0, **settings}
    *_, last = pipeline.steps([pipeline.settings(PROMPT, image_prompts=prompts, **chosen)])
    return last.latents


def theirs(
    folder: Path, encoder: Any, model: str, prompts: list[ImagePrompt], scales: Any, **settings: Any
) -> Tensor:
    oracle: Any = StableDiffusionXLPipeline.from_pretrained(
        folder / model / "model", local_files_only=True, image_encoder=encoder
    )
    oracle.set_progress_bar_config(disable=True)
    states = []
    for each in prompts:
        state = load_file(each.adapter.path)
        numbers = CARRIED if model == "ssd-1b" else range(1, 140, 2)
        states.append({
            "image_proj": {
                name.removeprefix("image_proj."): tensor
                for name, tensor in state.items() if name.startswith("image_proj.")
            },
            "ip_adapter": {
                f"{2 * index + 1}.{leaf}.weight": state[f"ip_adapter.{number}.{leaf}.weight"]
                for index, number in enumerate(numbers) for leaf in ("to_k_ip", "to_v_ip")
            },
        })  # fmt: skip
    oracle.load_ip_adapter(states, subfolder="", weight_name=[""] * len(states), image_encoder_folder=None)
    oracle.set_ip_adapter_scale(scales)
    given = {"num_inference_steps": STEPS, "height": SIDE, "width": SIDE, "guidance_scale": 5.0, **settings}
    pictures = [clip_pixels(each.picture, VISION.image_size) for each in prompts]
    generator = torch.Generator("cpu").manual_seed(5)
    return oracle(
        PROMPT, ip_adapter_image=pictures, generator=generator, output_type="latent", **given
    ).images


def check_equal(actual: Tensor, expected: Tensor, plain: Tensor) -> None:
    scale = expected.abs().max()
    assert (actual - expected).abs().max() <= 1e-4 * scale
    assert (plain - expected).abs().max() > 0.01 * scale, "it would be the same without the picture"


@pytest.mark.parametrize("model", ["sdxl", "ssd-1b"])
@pytest.mark.parametrize("name", ["plain", "plus"])
def test_an_ip_adapter(
    folder: Path, pipelines: dict[str, Pipeline], encoder: Any, model: str, name: str
) -> None:
    given = prompt(folder, name, scale=0.6)
    expected = theirs(folder, encoder, model, [given], 0.6)
    check_equal(ours(pipelines[model], given), expected, ours(pipelines[model]))


@pytest.mark.parametrize(
    "settings", [{"guidance_scale": 1.0}, {"negative_prompt": "blurry"}], ids=["no guidance", "negative"]
)
def test_with_one_prompt_and_with_two(
    folder: Path, pipelines: dict[str, Pipeline], encoder: Any, settings: dict[str, Any]
) -> None:
    given, pipeline = prompt(folder, "plus"), pipelines["ssd-1b"]
    expected = theirs(folder, encoder, "ssd-1b", [given], 1.0, **settings)
    check_equal(ours(pipeline, given, **settings), expected, ours(pipeline, **settings))


def test_several_at_once_in_parts_of_the_unet(
    folder: Path, pipelines: dict[str, Pipeline], encoder: Any
) -> None:
    """On SDXL: diffusers cannot limit them to parts of a UNet without attention in the middle."""
    prompts = [
        prompt(folder, "plain", scale=0.8, layers=("style",)),
        prompt(folder, "other", "b", scale=0.5, layers=("style", "layout")),
        prompt(folder, "plus", "b", scale=0.7),
    ]
    style, layout = {"block_0": [0.0, 0.8, 0.0]}, {"block_2": [0.0, 0.5]}
    scales = [{"up": style}, {"down": layout, "up": {"block_0": [0.0, 0.5, 0.0]}}, 0.7]
    expected = theirs(folder, encoder, "sdxl", prompts, scales)
    pipeline = pipelines["sdxl"]
    check_equal(ours(pipeline, *prompts), expected, ours(pipeline, *prompts[1:]))


def test_start_and_end(folder: Path, pipelines: dict[str, Pipeline], encoder: Any) -> None:
    def change(oracle: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        oracle.set_ip_adapter_scale(1.0 if step in (0, 1) else 0.0)  # for the step after this one
        return tensors

    given, pipeline = prompt(folder, "plain", start=0.25, end=0.75), pipelines["ssd-1b"]
    expected = theirs(folder, encoder, "ssd-1b", [given], 0.0, callback_on_step_end=change)
    check_equal(ours(pipeline, given), expected, ours(pipeline, replace(given, start=0.0, end=1.0)))


@torch.no_grad()
def test_the_image_encoder_is_transformers(encoder: CLIPVisionModelWithProjection) -> None:
    network = ImageEncoder(VISION)
    loud(network, 1)
    pixels = torch.randn(2, 3, VISION.image_size, VISION.image_size)
    expected = encoder(pixels, output_hidden_states=True)
    torch.testing.assert_close(network(pixels), expected.image_embeds)
    torch.testing.assert_close(network.states(pixels), expected.hidden_states[-2])


@pytest.mark.parametrize("size", [(72, 48), (31, 90), (40, 40)])
def test_pictures_are_read_as_by_transformers(tmp_path: Path, size: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    oracle = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    with Image.open(tmp_path / "a.png") as image:
        expected = oracle(image, return_tensors="pt").pixel_values
    actual = clip_pixels(InputFile.of(tmp_path / "a.png", most=10**6), 32)
    torch.testing.assert_close(actual, expected)


def test_blocks_are_named_as_in_diffusers() -> None:
    from ssd1b.models.unet import UNet

    def check(unet: UNetLayout) -> None:
        with torch.device("meta"):
            network = UNet(unet)
        names = {id(module): name for name, module in network.named_modules()}
        assert block_names(unet) == [names[id(each)] for each in network._transformer_blocks()]

    check(SDXL_MINI)
    check(SSD_1B_MINI)
