"""Image prompts in a pipeline: what is read, when it counts, what stays in memory, and mistakes."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssd1b.actions.inspect import describe_ip_adapter
from ssd1b.adapters.ip_adapters import open_ip_adapter
from ssd1b.errors import ConflictError, InputError
from ssd1b.execution import Execution
from ssd1b.image_prompts import ImagePrompt, image_prompt_of
from ssd1b.jobs.executor import renderer
from ssd1b.layouts import SDXL, SSD_1B, IPAdapterLayout, ResamplerLayout, VisionLayout
from ssd1b.models.ip_adapter import IPAdapter
from ssd1b.models.vision import ImageEncoder
from ssd1b.pipeline import Pipeline
from ssd1b.speed import image_prompting
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.image_encoder import open_image_encoder
from ssd1b.weights.writing import save_folder
from tiny import DRAWABLE, random_weights, tiny

LAYOUT = replace(tiny(SSD_1B), vae=DRAWABLE.vae, size=64)
VISION = VisionLayout(
    hidden_size=96, layers=2, heads=3, intermediate_size=32, projection_dim=24, image_size=32, patch_size=16
)
# In the order of the files' numbers, which is not that of execution: the middle comes last.
SDXL_BLOCKS = (16,) * 4 + (32,) * 50 + (16,) * 6 + (32,) * 10
SSD_BLOCKS = (16,) * 4 + (32,) * 26 + (16,) * 4


def write(path: Path, network: torch.nn.Module) -> Path:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    state = {}
    for name, tensor in network.state_dict().items():
        kind, _, rest = name.partition(".")
        if kind == "ip_adapter":
            index, _, leaf = rest.partition(".")
            name = f"{kind}.{2 * int(index) + 1}.{leaf}"
        state[name] = tensor
    save_file(state, path)
    return path


def adapter(blocks: tuple[int, ...], *, plus: bool = False, image: int | None = None) -> IPAdapter:
    return IPAdapter(IPAdapterLayout(
        image_dim=image or (VISION.hidden_size if plus else VISION.projection_dim), tokens=4,
        context_dim=LAYOUT.unet.cross_attention_dim, blocks=blocks, head_dim=LAYOUT.unet.head_dim,
        resampler=ResamplerLayout(channels=16, layers=2, heads=1, intermediate_size=32) if plus else None,
    ))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, IP-Adapters for it and for SDXL, an image encoder, and two pictures."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("prompting")
    info = ModelInfo(layout=LAYOUT, settings={"steps": 4, "guidance_scale": 4.0, "sampler": "euler"})
    save_folder(folder / "model", info, random_weights(LAYOUT))
    write(folder / "plain.safetensors", adapter(SDXL_BLOCKS))
    write(folder / "plus.safetensors", adapter(SSD_BLOCKS, plus=True))
    (folder / "image_encoder").mkdir()
    write(folder / "image_encoder/model.safetensors", ImageEncoder(VISION))
    for seed, name in enumerate("ab"):
        levels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{name}.png")
    return folder


def load(folder: Path, **execution: object) -> Pipeline:
    return Pipeline.load(str(folder / "model"), device="cpu", dtype="fp32", execution=Execution(**execution))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return load(folder)


def prompt(folder: Path, name: str = "plain", picture: str = "a", **fields: object) -> ImagePrompt:
    return image_prompt_of(folder / f"{name}.safetensors", folder / f"{picture}.png", **fields)


def latents(
    pipeline: Pipeline, *prompts: ImagePrompt, seeds: tuple[int, ...] = (5,), **given: object
) -> torch.Tensor:
    batch = [pipeline.settings("x", seed=seed, image_prompts=prompts, **given) for seed in seeds]
    *_, last = pipeline.steps(batch)
    return last.latents


def test_images_of_a_batch_are_what_they_are_alone(folder: Path, pipeline: Pipeline) -> None:
    prompts = [prompt(folder), prompt(folder, "plus", "b", start=0.5)]
    for given in ({}, {"guidance_scale": 1.0}, {"negative_prompt": "y"}, {"sampler": "heun"}):
        together = latents(pipeline, *prompts, seeds=(5, 6), **given)
        for index, seed in enumerate((5, 6)):
            alone = latents(pipeline, *prompts, seeds=(seed,), **given)[0]
            torch.testing.assert_close(together[index], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "same"),
    [({"scale": 0.0}, True), ({"end": 0.2}, True), ({"end": 0.25}, False), ({"layers": ("style",)}, False)],
)
def test_a_picture_counts_only_where_it_is_said(
    folder: Path, pipeline: Pipeline, fields: dict, same: bool
) -> None:
    found = latents(pipeline, prompt(folder, **fields))
    assert torch.allclose(found, latents(pipeline), atol=1e-5) == same


def test_blocks_get_the_layers_of_those_that_they_are_copies_of(folder: Path) -> None:
    part = open_ip_adapter(folder / "plain.safetensors", LAYOUT.unet).part("ip_adapter")
    numbers = [
        int(part.tensors[f"ip_adapter.{index}.to_k_ip.weight"].name.split(".")[1]) for index in range(34)
    ]
    assert numbers == [
        1, 3, 5, 7, 9, 11, 13, 21, 29, 31, 33, 41,
        49, 51, 53, 61, 69, 71, 73, 81, *range(89, 109, 2), 109, 111, 113, 117,
    ]  # fmt: skip
    own = open_ip_adapter(folder / "plus.safetensors", LAYOUT.unet).part("ip_adapter")
    assert own.tensors["ip_adapter.33.to_v_ip.weight"].name == "ip_adapter.67.to_v_ip.weight"


def test_a_picture_is_read_once_and_networks_leave_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, opened = load(folder), []
    opening = image_prompting.open_image_encoder
    monkeypatch.setattr(
        image_prompting, "open_image_encoder", lambda path: (opened.append(path), opening(path))[1]
    )
    first, second = prompt(folder), prompt(folder, picture="b")
    for prompts in ((first,), (replace(first, scale=0.5),), (first, second), (second,), (first,)):
        latents(pipeline, *prompts, steps=1)
    assert len(opened) == 3


def test_low_memory_gives_the_same_image(folder: Path, pipeline: Pipeline) -> None:
    prompts = [prompt(folder), prompt(folder, "plus", "b")]
    found, expected = latents(load(folder, memory="low"), *prompts), latents(pipeline, *prompts)
    assert (found - expected).norm() / expected.norm() < 0.1


def test_jobs_that_share_steps_do_not_share_those_of_other_pictures(folder: Path, pipeline: Pipeline) -> None:
    def settings(*prompts: ImagePrompt):
        return pipeline.settings("x", seed=5, image_prompts=prompts)

    chosen = [settings(prompt(folder)), settings(prompt(folder, scale=0.5)), settings(prompt(folder, "plus")),
              settings(prompt(folder, picture="b")), settings()]  # fmt: skip
    with renderer(pipeline, lambda image, prompt: {}) as render:
        files = [render([each])[0].file for each in chosen]
    shared = [np.asarray(Image.open(io.BytesIO(file))) for file in files if file]
    for pixels, each in zip(shared, chosen, strict=True):
        assert np.array_equal(pixels, np.asarray(pipeline.draw([each])[0].image))


def test_a_control_sees_the_texts_and_no_picture(folder: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    from ssd1b.controls import control_of
    from ssd1b.layouts import ControlNetLayout, encoder_of
    from ssd1b.models.controlnet import ControlNet

    network = ControlNet(ControlNetLayout(encoder=encoder_of(LAYOUT.unet), hint=(4, 4, 4, 4)))
    control = control_of(write(tmp_path / "net.safetensors", network), folder / "a.png")
    both = latents(pipeline, prompt(folder), controls=[control])
    assert both.isfinite().all()
    for other in (
        latents(pipeline, prompt(folder)), latents(pipeline, controls=[control]),
    ):  # fmt: skip
        assert not torch.allclose(both, other, atol=1e-3)


def test_a_model_without_the_part_of_the_unet(folder: Path, pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="this model has no cross-attention in mid"):
        latents(pipeline, prompt(folder, layers=("mid",)))
    with pytest.raises(InputError, match="omit --backend openvino"):
        latents(replace(pipeline, image_prompting=None), prompt(folder))


def test_an_encoder_of_another_width(folder: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    write(tmp_path / "ip.safetensors", adapter(SSD_BLOCKS, image=7))
    given = image_prompt_of(tmp_path / "ip.safetensors", folder / "a.png", folder / "image_encoder")
    with pytest.raises(InputError, match=r"takes 7 channels of an image encoder, and .* gives 24"):
        latents(pipeline, given)
    write(tmp_path / "ip.safetensors", adapter(SSD_BLOCKS))
    with pytest.raises(ConflictError, match="has changed"):
        latents(pipeline, given)


Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("image_proj.proj.weight"), "image_proj.proj.weight|proj.weight is missing"),
        (lambda t: t.pop("ip_adapter.9.to_v_ip.weight"), "ip_adapter.9: it must have to_k_ip and to_v_ip"),
        (lambda t: [t.pop(f"ip_adapter.139.to_{each}_ip.weight") for each in "kv"],
         "its 69 layers have 16, 32 channels; this model has 34 of 16, 32"),
        (lambda t: t.update({"image_proj.proj.2.weight": torch.ones(2)}), "FaceID"),
        (lambda t: t.update({"image_proj.proj.3.weight": torch.ones(2)}), "full faces"),
        (lambda t: t.update({"x": torch.ones(2)}), "1 unknown tensor: x"),
        (lambda t: t.update({"image_proj.proj.weight": torch.ones(41, 24)}), "not tokens of 40"),
        (lambda t: t.update({"image_proj.x": torch.ones(2)}), "1 unknown tensor: image_proj.x"),
        (lambda t: t.update({"image_proj.norm.bias": torch.full((40,), torch.nan)}), "NaN or infinity"),
        (lambda t: [t.clear(), t.update({"lora_unet_x.lora_down.weight": torch.ones(2)})], "a LoRA"),
        (lambda t: [t.clear(), t.update({"anything": torch.ones(2)})], "it contains anything"),
    ],
)  # fmt: skip
def test_other_and_damaged_files_are_named(
    folder: Path, pipeline: Pipeline, tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    tensors = load_file(folder / "plain.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "ip.safetensors")
    with pytest.raises(InputError, match=message) as error:
        given = image_prompt_of(tmp_path / "ip.safetensors", folder / "a.png", folder / "image_encoder")
        latents(replace(pipeline, dtype=torch.float32), given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual_projection.weight"), "visual_projection.weight is missing"),
        (lambda t: t.pop("vision_model.post_layernorm.bias"), "1 missing tensor"),
        (lambda t: t.update({"vision_model.embeddings.position_embedding.weight": torch.ones(7, 96)}),
         "it has 7 positions of patches of 16 pixels"),
        (lambda t: t.update({"vision_model.embeddings.patch_embedding.weight": torch.ones(95, 3, 16, 16)}),
         "it has 95 channels; known are 96, 768, 1024, 1280, 1664"),
        (lambda t: [t.clear(), t.update({"x": torch.ones(2)})], "no image encoder of CLIP"),
    ],
)  # fmt: skip
def test_other_and_damaged_encoders_are_named(
    folder: Path, pipeline: Pipeline, tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    tensors = load_file(folder / "image_encoder/model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "e.safetensors")
    with pytest.raises(InputError, match=message):
        latents(
            pipeline,
            image_prompt_of(folder / "plain.safetensors", folder / "a.png", tmp_path / "e.safetensors"),
        )


def test_the_whole_of_clip_has_an_image_encoder(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "image_encoder/model.safetensors")
    others = {"text_model.final_layer_norm.weight": torch.ones(2), "logit_scale": torch.ones(()),
              "vision_model.embeddings.position_ids": torch.ones(1, 5, dtype=torch.int64)}  # fmt: skip
    save_file({**tensors, **others}, tmp_path / "clip.safetensors")
    layout = open_image_encoder(tmp_path / "clip.safetensors").part("image_encoder").layout
    assert layout == VISION


def test_sizes_of_published_networks() -> None:
    """Parameters of ip-adapter_sdxl (70 layers, 1280 -> 4 tokens) and ViT-bigG, by their configurations."""
    widths = {"sdxl": (640,) * 4 + (1280,) * 50 + (640,) * 6 + (1280,) * 10}

    def parameters(network: torch.nn.Module) -> int:
        return sum(each.numel() for each in network.parameters())

    with torch.device("meta"):
        plain = IPAdapter(IPAdapterLayout(
            image_dim=1280, tokens=4, context_dim=2048, blocks=widths["sdxl"], head_dim=64
        ))  # fmt: skip
        big_g = ImageEncoder(VisionLayout(
            hidden_size=1664, layers=48, heads=16, intermediate_size=8192, projection_dim=1280,
            image_size=224, patch_size=14,
        ))  # fmt: skip
    assert SDXL.transformer_blocks == len(widths["sdxl"])
    # Twice (60 x 1280 + 10 x 640) x 2048, and the projection with its norm.
    assert parameters(plain) == 2 * (60 * 1280 + 10 * 640) * 2048 + (1280 + 1) * 4 * 2048 + 2 * 2048
    assert parameters(big_g) == 1_844_907_264


def test_what_an_adapter_is_and_which_models_it_fits(folder: Path) -> None:
    facts = describe_ip_adapter(str(folder / "plain.safetensors"), str(folder / "model"))
    assert facts["kind"] == "plain" and facts["tokens"] == 4 and facts["image_channels"] == 24
    assert [*facts["models"].values()] == [None]
    assert "channels" in (describe_ip_adapter(str(folder / "plain.safetensors"))["models"]["sdxl"] or "")
