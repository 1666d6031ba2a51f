"""Files against diffusers and transformers: names, configurations, whole models, both ways."""

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ssd1b.layouts import (
    CLIP_BIGG,
    CLIP_L,
    SDXL_MINI,
    SSD_1B_MINI,
    UNETS,
    TextLayout,
    VAELayout,
)
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.weights.checkpoint import SDXL_SCHEDULER, ModelInfo
from ssd1b.weights.configs import text_config, unet_config, vae_config
from ssd1b.weights.keymap import ORIGINAL_PREFIXES, PARTS, our_name
from ssd1b.weights.loading import load_component, read_part
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.vocabulary import PADDING, clip_tokenizer, clip_vocabulary, load_tokenizer, write_tokenizer
from ssd1b.weights.writing import original_tensors, save_folder, save_single_file
from tiny import TINY


def on_meta(build, *arguments) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments)


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", [*UNETS, "mini-sdxl", "mini-ssd-1b"])
def test_diffusers_builds_the_same_unet_from_our_configuration(name):
    layout = {**UNETS, "mini-sdxl": SDXL_MINI, "mini-ssd-1b": SSD_1B_MINI}[name]
    theirs = on_meta(UNet2DConditionModel.from_config, unet_config(layout, 128))
    assert shapes(theirs.state_dict()) == shapes(on_meta(UNet, layout).state_dict())
    heads = [module.heads for path, module in theirs.named_modules() if path.endswith("attn1")]
    widths = [module.to_q.out_features for path, module in theirs.named_modules() if path.endswith("attn1")]
    assert [width // number for width, number in zip(widths, heads, strict=True)] == [layout.head_dim] * len(
        heads
    )
    assert {m.num_groups for m in theirs.modules() if isinstance(m, nn.GroupNorm)} == {layout.norm_groups}


def test_diffusers_builds_the_same_vae_from_our_configuration():
    theirs = on_meta(AutoencoderKL.from_config, vae_config(VAELayout(), 1024))
    assert shapes(theirs.state_dict()) == shapes(on_meta(VAE, VAELayout()).state_dict())
    assert theirs.config.scaling_factor == VAELayout().scaling_factor


@pytest.mark.parametrize("layout", [CLIP_L, CLIP_BIGG], ids=["L", "bigG"])
def test_transformers_builds_the_same_text_encoder_from_our_configuration(layout: TextLayout):
    config = text_config(layout)
    kind = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    theirs = on_meta(kind[config["architectures"][0]], CLIPTextConfig(**config))
    named = {our_name("text_encoder", name): tuple(t.shape) for name, t in theirs.state_dict().items()}
    assert named == shapes(on_meta(TextEncoder, layout).state_dict())


@pytest.mark.parametrize("name", UNETS)
def test_unet_names_are_those_that_diffusers_converts_to(name):
    """Tensors on the meta device, at full size; every one is told apart by the object that it is."""
    ours = on_meta(UNet, UNETS[name]).state_dict()
    original = {ORIGINAL_PREFIXES["unet"] + key: t for key, t in original_tensors("unet", ours).items()}
    theirs = convert_ldm_unet_checkpoint(original, unet_config(UNETS[name], 128))
    assert {key: id(tensor) for key, tensor in theirs.items()} == {
        key: id(tensor) for key, tensor in ours.items()
    }


def test_vae_names_and_shapes_are_those_that_diffusers_converts_to():
    ours = on_meta(VAE, VAELayout()).state_dict()
    original = {ORIGINAL_PREFIXES["vae"] + key: t for key, t in original_tensors("vae", ours).items()}
    theirs = convert_ldm_vae_checkpoint(original, vae_config(VAELayout(), 1024))
    assert shapes(theirs) == shapes(ours)


def test_text_names_and_shapes_are_those_that_diffusers_converts_to():
    ours = on_meta(TextEncoder, CLIP_BIGG)
    prefix = ORIGINAL_PREFIXES["text_encoder_2"]
    original = {prefix + key: t for key, t in original_tensors("text_encoder_2", ours.state_dict()).items()}
    theirs = convert_open_clip_checkpoint(None, original, prefix=prefix)
    assert shapes(theirs) == shapes(ours.state_dict())


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    modules = (
        UNet(TINY.unet),
        VAE(TINY.vae),
        TextEncoder(TINY.text_encoder),
        TextEncoder(TINY.text_encoder_2),
    )
    return {part: module.state_dict() for part, module in zip(PARTS, modules, strict=True)}


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "model"
    save_folder(path, ModelInfo(layout=TINY), weights)
    return path


def assert_same(pipeline, weights):
    for part in PARTS:
        theirs = {
            our_name(part, name): tensor for name, tensor in getattr(pipeline, part).state_dict().items()
        }
        assert theirs.keys() == weights[part].keys()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in weights[part].items())


def test_diffusers_opens_our_folder(folder, weights):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    assert_same(pipeline, weights)
    assert (pipeline.tokenizer.pad_token_id, pipeline.tokenizer_2.pad_token_id) == (49407, 0)
    assert isinstance(pipeline.scheduler, EulerDiscreteScheduler)
    assert pipeline.config.force_zeros_for_empty_prompt


def test_diffusers_opens_our_single_file(folder, weights, tmp_path):
    """A file shaped as SSD-1B, which diffusers once could not convert (diffusers#6689)."""
    file = tmp_path / "model.safetensors"
    save_single_file(file, ModelInfo(layout=TINY), weights)
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True
    )
    assert_same(pipeline, weights)


def test_we_open_diffusers_folder(folder, weights, tmp_path):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.save_pretrained(tmp_path / "theirs", variant="fp16")
    pipeline.unet.save_pretrained(tmp_path / "theirs" / "unet", max_shard_size="200KB")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert len({tensor.file for tensor in checkpoint.parts["unet"].tensors.values()}) > 1, "shards"
    assert all(".fp16." in tensor.file.name for tensor in checkpoint.parts["vae"].tensors.values())
    assert checkpoint.info.layout == TINY
    for part in PARTS:
        tensors = read_part(checkpoint, part)
        assert tensors.keys() == weights[part].keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in weights[part].items())
    assert checkpoint.scheduler.items() >= SDXL_SCHEDULER.items()


def test_a_picture_of_numbers_is_the_same_through_either_loader(folder):
    """Not names alone: what our module computes with our loader's weights is what diffusers computes."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    unet = on_meta(UNet, TINY.unet)
    load_component(unet, open_checkpoint(folder), "unet", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 40)))
    pooled, time_ids = torch.randn(1, 12, generator=generator), torch.full((1, 6), 32.0)
    with torch.inference_mode():
        ours = unet(x, torch.tensor([500.0]), text, pooled, time_ids)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        theirs = pipeline.unet(x, 500.0, text, added_cond_kwargs=added).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


TEXTS = [
    "a photo of a cat",
    "",
    "look! a cat!! (really)",
    "it's 10€, they've\tsaid…",
    "Ünïcödé, don't! 猫 12345 <|endoftext|>",
    "A  very   long " * 40,
]


def test_the_vocabulary_is_clips():
    assert clip_tokenizer("text_encoder").ids(TEXTS[0]) == [320, 1125, 539, 320, 2368]


@pytest.mark.parametrize("part", PADDING)
def test_a_written_tokenizer_is_read_alike_by_transformers_and_by_us(tmp_path, part):
    write_tokenizer(tmp_path / "tokenizer", *clip_vocabulary(), PADDING[part])
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    ours = load_tokenizer(tmp_path / "tokenizer")
    theirs.save_pretrained(tmp_path / "new")  # as transformers writes one today
    for tokenizer in (ours, clip_tokenizer(part), load_tokenizer(tmp_path / "new")):
        assert tokenizer.pad_token_id == theirs.pad_token_id
        for text in TEXTS:
            assert tokenizer.ids(text) == theirs(text, add_special_tokens=False).input_ids
