"""Images that follow a picture are diffusers': ControlNets of any depth, several at once, T2I-Adapters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    MultiAdapter,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
)
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image
from tests.parity.test_pipeline import PROMPT, write_model
from torch import Tensor

from ssd1b.controls import Control, control_of
from ssd1b.layouts import MINI_SDXL, SDXL_MINI, SSD_1B_MINI, ControlNetLayout, UNetLayout, encoder_of
from ssd1b.pipeline import Pipeline
from ssd1b.weights.configs import controlnet_config
from ssd1b.weights.files import write_json

SCALE = "controlnet_conditioning_scale"
SIDE = 64
STEPS = 4


def without_attention(unet: UNetLayout) -> UNetLayout:
    levels = tuple(replace(each, down=(0,) * len(each.down)) for each in unet.levels)
    return replace(unet, levels=levels, mid=0)


ENCODERS = {
    "full": encoder_of(SDXL_MINI),
    "ssd-1b": encoder_of(SSD_1B_MINI),
    "small": encoder_of(without_attention(SSD_1B_MINI)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), replace(MINI_SDXL, unet=SSD_1B_MINI))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(str(folder), device="cpu", dtype="fp32")


@torch.no_grad()
def loud(network: torch.nn.Module) -> Any:
    """Give every parameter a value that counts, also those that start with zero."""
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=0.3)
    return network.eval()


def write_controlnet(out: Path, encoder: UNetLayout, seed: int = 1) -> ControlNetModel:
    """Write a ControlNet that diffusers made from our configuration."""
    torch.manual_seed(seed)
    config = controlnet_config(ControlNetLayout(encoder=encoder, hint=(4, 6, 8, 8)))
    oracle = loud(ControlNetModel.from_config(config))
    oracle.save_pretrained(out)
    return oracle


@pytest.fixture(scope="module")
def controlnets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ControlNetModel]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ENCODERS}
    return {name: (folders[name], write_controlnet(folders[name], each)) for name, each in ENCODERS.items()}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    levels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def ours(pipeline: Pipeline, *controls: Control, **settings: Any) -> Tensor:
    chosen = {"seed": 5, "steps": STEPS, "width": SIDE, "height": SIDE, "guidance_scale": 5.0, **settings}
    *_, last = pipeline.steps([pipeline.settings(PROMPT, controls=controls, **chosen)])
    return last.latents


@pytest.fixture(scope="module")
def follower(folder: Path, controlnets: dict[str, tuple[Path, ControlNetModel]]) -> Any:
    return StableDiffusionXLControlNetPipeline.from_pretrained(
        folder, local_files_only=True, controlnet=controlnets["full"][1]
    )


@pytest.fixture(scope="module")
def adapted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    adapter = write_adapter(tmp_path_factory.mktemp("adapter"), 1, channels=3)
    return StableDiffusionXLAdapterPipeline.from_pretrained(folder, local_files_only=True, adapter=adapter)


def theirs(oracle: Any, model: Any, picture: Any, **settings: Any) -> Tensor:
    """Generate with diffusers; ``model`` is a ControlNet or an adapter, or several as diffusers' module."""
    oracle.set_progress_bar_config(disable=True)
    word = "adapter" if isinstance(oracle, StableDiffusionXLAdapterPipeline) else "controlnet"
    setattr(oracle, word, model)
    given = {"num_inference_steps": STEPS, "height": SIDE, "width": SIDE, "guidance_scale": 5.0, **settings}
    generator = torch.Generator("cpu").manual_seed(5)
    return oracle(PROMPT, image=picture, generator=generator, output_type="latent", **given).images


def check_equal(actual: Tensor, expected: Tensor, plain: Tensor) -> None:
    scale = expected.abs().max()
    assert (actual - expected).abs().max() <= 1e-4 * scale
    assert (plain - expected).abs().max() > 0.01 * scale, "it would be the same without the control"


CASES = [
    *((name, {}, {}, {}) for name in ENCODERS),
    *(("ssd-1b", *each) for each in [
        ({"scale": 0.5, "start": 0.25, "end": 0.75},
         {SCALE: 0.5, "control_guidance_start": 0.25, "control_guidance_end": 0.75}, {}),
        ({"scale": 0.8}, {SCALE: 0.8, "guidance_scale": 1.0}, {"guidance_scale": 1.0}),
        ({"guess": True}, {"guess_mode": True}, {}),
        ({}, {"negative_prompt": "blurry"}, {"negative_prompt": "blurry"}),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "control", "their_settings", "settings"), CASES)
def test_a_controlnet(
    follower: Any, pipeline: Pipeline, controlnets: dict[str, tuple[Path, ControlNetModel]], picture: Path,
    name: str, control: dict[str, Any], their_settings: dict[str, Any], settings: dict[str, Any],
) -> None:  # fmt: skip
    path, model = controlnets[name]
    expected = theirs(
        follower, model, Image.open(picture), **{"controlnet_conditioning_scale": 1.0, **their_settings}
    )  # fmt: skip
    actual = ours(pipeline, control_of(path, picture, **control), **settings)
    check_equal(actual, expected, ours(pipeline, **settings))


def test_two_controlnets_at_once(
    follower: Any, pipeline: Pipeline, controlnets: dict[str, tuple[Path, ControlNetModel]], picture: Path
) -> None:
    (one, first), (other, second) = controlnets["full"], controlnets["small"]
    image = Image.open(picture)
    expected = theirs(
        follower, MultiControlNetModel([first, second]), [image, image.rotate(180)],
        controlnet_conditioning_scale=[0.7, 0.4], control_guidance_end=[1.0, 0.5],
    )  # fmt: skip
    turned = picture.with_name("turned.png")
    image.rotate(180).save(turned)
    controls = control_of(one, picture, scale=0.7), control_of(other, turned, scale=0.4, end=0.5)
    check_equal(ours(pipeline, *controls), expected, ours(pipeline, controls[0]))


def test_blue_first(
    pipeline: Pipeline, controlnets: dict[str, tuple[Path, ControlNetModel]], picture: Path
) -> None:
    path, _ = controlnets["full"]
    swapped = picture.with_name("swapped.png")
    Image.fromarray(np.asarray(Image.open(picture))[:, :, ::-1].copy()).save(swapped)
    actual = ours(pipeline, control_of(path, picture, order="bgr"))
    assert actual.equal(ours(pipeline, control_of(path, swapped)))
    assert not actual.equal(ours(pipeline, control_of(path, picture)))


def write_adapter(out: Path, seed: int, channels: int) -> T2IAdapter:
    torch.manual_seed(seed)
    widths = [each.channels for each in SSD_1B_MINI.levels]
    oracle = T2IAdapter(
        in_channels=channels, channels=[*widths, widths[-1]], num_res_blocks=2, downscale_factor=16,
        adapter_type="full_adapter_xl",
    )  # fmt: skip
    loud(oracle).save_pretrained(out)
    return oracle


@pytest.mark.parametrize(
    ("settings", "their_settings"),
    [
        ({}, {}),
        ({"scale": 0.6, "end": 0.5},
         {"adapter_conditioning_scale": 0.6, "adapter_conditioning_factor": 0.5}),
    ],
    ids=["plain", "scale and end"],
)  # fmt: skip
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_t2i_adapter(
    adapted: Any, pipeline: Pipeline, picture: Path, tmp_path: Path, settings: dict[str, Any],
    their_settings: dict[str, Any], guidance: float,
) -> None:  # fmt: skip
    model = write_adapter(tmp_path / "adapter", 1, channels=3)
    expected = theirs(
        adapted, model, Image.open(picture), guidance_scale=guidance, **their_settings
    )  # fmt: skip
    control = control_of(tmp_path / "adapter", picture, **settings)
    actual = ours(pipeline, control, guidance_scale=guidance)
    check_equal(actual, expected, ours(pipeline, guidance_scale=guidance))


def test_two_t2i_adapters_at_once(adapted: Any, pipeline: Pipeline, picture: Path, tmp_path: Path) -> None:
    model = MultiAdapter([write_adapter(tmp_path / str(seed), seed, channels=3) for seed in (1, 2)])
    image = Image.open(picture)
    expected = theirs(
        adapted, model, [image, image],
        adapter_conditioning_scale=[0.5, 0.8],
    )  # fmt: skip
    controls = [control_of(tmp_path / str(n), picture, scale=scale) for n, scale in ((1, 0.5), (2, 0.8))]
    check_equal(ours(pipeline, *controls), expected, ours(pipeline, controls[0]))


def test_an_adapter_for_grey_pictures(
    adapted: Any, pipeline: Pipeline, picture: Path, tmp_path: Path
) -> None:
    model = write_adapter(tmp_path / "grey", 1, channels=1)
    Image.open(picture).convert("L").save(picture)
    expected = theirs(adapted, model, Image.open(picture))
    check_equal(ours(pipeline, control_of(tmp_path / "grey", picture)), expected, ours(pipeline))


def test_a_folder_of_ours_opens_in_diffusers(tmp_path: Path) -> None:
    config = controlnet_config(ControlNetLayout(encoder=ENCODERS["ssd-1b"]))
    write_json(tmp_path / "config.json", config)
    found = ControlNetModel.from_config(ControlNetModel.load_config(tmp_path))
    assert found.config.conditioning_embedding_out_channels == [16, 32, 96, 256]
