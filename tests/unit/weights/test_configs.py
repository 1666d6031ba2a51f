"""config.json to layout and back."""

import json
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rounds import rounds
from ssd1b.errors import InputError
from ssd1b.layouts import CLIP_BIGG, CLIP_L, SDXL, SSD_1B, TextLayout, UNetLayout, VAELayout
from ssd1b.weights.configs import (
    text_config,
    text_layout,
    unet_config,
    vae_config,
    vae_layout,
)
from ssd1b.weights.configs import (
    unet_layout as read_unet,
)
from tiny import TINY

from .cases import PUBLISHED, unet_layout, unet_layouts

read_text = partial(text_layout, second=False)

# The fields that decide something, as the published files have them.
SDXL_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
SSD_1B_CONFIG = {
    **SDXL_CONFIG,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [0, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
CLIP_L_CONFIG = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
CLIP_BIGG_CONFIG = {
    **CLIP_L_CONFIG,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
SDXL_VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def test_published_configurations():
    assert read_unet(SDXL_CONFIG, "x") == SDXL
    assert read_unet(SSD_1B_CONFIG, "x") == SSD_1B
    assert read_unet({**SSD_1B_CONFIG, "time_cond_proj_dim": 256}, "x").guidance_embed_dim == 256
    assert vae_layout(SDXL_VAE_CONFIG, "x") == VAELayout()
    assert text_layout(CLIP_L_CONFIG, "x", second=False) == CLIP_L
    assert text_layout(CLIP_BIGG_CONFIG, "x", second=True) == CLIP_BIGG


@pytest.mark.parametrize("name", PUBLISHED)
def test_unet_layouts_survive(name):
    written = json.loads(json.dumps(unet_config(PUBLISHED[name], 128)))
    assert read_unet(written, "x") == PUBLISHED[name]


def test_what_we_write_agrees_with_what_was_published():
    written = unet_config(SDXL, 128)
    told = {name: value for name, value in SDXL_CONFIG.items() if name in written}
    assert {name: written[name] for name in told} == told
    assert written["reverse_transformer_layers_per_block"] is None
    assert unet_config(SSD_1B, 128)["reverse_transformer_layers_per_block"] == [[4, 4, 10], [2, 1, 1], 1]


@given(unet_layouts())
@settings(max_examples=rounds(50, 200))
def test_any_unet_layout_survives(drawn):
    layout = unet_layout(drawn)
    assert read_unet(json.loads(json.dumps(unet_config(layout, 128))), "x") == layout


def test_a_middle_block_that_diffusers_cannot_hold_is_an_error():
    with pytest.raises(InputError, match="middle block of depth 3"):
        unet_config(replace(SSD_1B, mid=3), 128)


@pytest.mark.parametrize("layout", [VAELayout(), TINY.vae])
def test_vae_layouts_survive(layout):
    assert vae_layout(json.loads(json.dumps(vae_config(layout, 1024))), "x") == layout


@pytest.mark.parametrize("layout", [CLIP_L, CLIP_BIGG, TINY.text_encoder, replace(CLIP_L, pad_token_id=5)])
def test_text_layouts_survive(layout):
    assert text_layout(json.loads(json.dumps(text_config(layout))), "x", second=False) == layout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"addition_embed_type": None}, "addition_embed_type is None, .* only 'text_time' is supported"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type is .* allowed: "),
        ({"down_block_types": ["DownBlock2D"] * 2}, "down_block_types is .* must have 3 items"),
        ({"up_block_types": ["SkipUpBlock2D"] * 3}, "up_block_types.0. is .* be 'CrossAttnUpBlock2D' or"),
        ({"block_out_channels": [320, 640, "1280"]}, "block_out_channels.2. is '1280': it must be"),
        ({"layers_per_block": 10**9}, "layers_per_block is .* from 1 to 65536 or a list"),
        ({"attention_head_dim": [5, 5, 5]}, "must give all heads one size"),
        ({"attention_head_dim": [7, 7, 7]}, "must give all heads one size"),
        ({"transformer_layers_per_block": [0, [2, 2], [4, 4]]}, "a depth or 3 of them"),
        ({"transformer_layers_per_block": [1, 2]}, "it must have 3 items, one per level"),
        ({**SSD_1B_CONFIG, "transformer_layers_per_block": [1, [2, 0], 4]}, "mixes"),
        ({"projection_class_embeddings_input_dim": 1536}, "must exceed 6 x 256"),
        ({"addition_time_embed_dim": None}, "addition_time_embed_dim is missing"),
        ({"norm_num_groups": True}, "norm_num_groups is true: it must be a whole number"),
    ],
)  # fmt: skip
def test_a_unet_that_this_package_does_not_compute_is_named(change, message):
    with pytest.raises(InputError, match=f"^there: .*{message}"):
        read_unet({**SDXL_CONFIG, **change}, "there")


@pytest.mark.parametrize(
    ("read", "config", "message"),
    [
        (vae_layout, {**SDXL_VAE_CONFIG, "latents_mean": [0.0]}, "latents_mean"),
        (
            vae_layout,
            {**SDXL_VAE_CONFIG, "scaling_factor": -1},
            "scaling_factor is -1: it must be a number from",
        ),
        (vae_layout, {**SDXL_VAE_CONFIG, "up_block_types": None}, "up_block_types"),
        (read_text, {**CLIP_L_CONFIG, "hidden_act": "relu"}, "hidden_act is 'relu': it must be 'gelu' or"),
        (read_text, {**CLIP_L_CONFIG, "layer_norm_eps": 1e-3}, "layer_norm_eps"),
        (
            read_text,
            {**CLIP_L_CONFIG, "hidden_size": "768"},
            "hidden_size is '768': it must be a whole number",
        ),
    ],
)
def test_other_networks_that_this_package_does_not_compute_are_named(read, config, message):
    with pytest.raises(InputError, match=message):
        read(config, "there")


def test_scaling_factor_defaults_to_diffusers_default():
    config = {name: value for name, value in SDXL_VAE_CONFIG.items() if name != "scaling_factor"}
    assert vae_layout(config, "x").scaling_factor == 0.18215


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(st.sampled_from(sorted(SSD_1B_CONFIG)), JSON)
@settings(max_examples=rounds(50, 300))
def test_any_value_in_any_field_gives_a_layout_or_a_sentence(name, value):
    for read, config, kind in (
        (read_unet, SSD_1B_CONFIG, UNetLayout),
        (vae_layout, SDXL_VAE_CONFIG, VAELayout),
        (read_text, CLIP_L_CONFIG, TextLayout),
    ):
        field = name if name in config else sorted(config)[len(name) % len(config)]
        try:
            assert isinstance(read({**config, field: value}, "there"), kind)
        except InputError as error:
            assert str(error).startswith("there: ") and "\n" not in str(error)
