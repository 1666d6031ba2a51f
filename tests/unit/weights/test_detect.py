"""Layouts read off shapes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from ssd1b.errors import InputError
from ssd1b.layouts import CLIP_BIGG, CLIP_L, SDXL, SSD_1B, UNETS, VAELayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.vae import VAE
from ssd1b.weights.detect import detect_text_layout, detect_unet_layout, detect_vae_layout
from tiny import TINY

from .cases import PUBLISHED, hints, modules, shapes, unet_layout, unet_layouts, unet_shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_unets(name):
    layout = PUBLISHED[name]
    assert detect_unet_layout(unet_shapes(layout), **hints(layout)) == layout


@pytest.mark.parametrize("name", UNETS)
def test_published_unets_need_no_configuration(name):
    assert detect_unet_layout(unet_shapes(UNETS[name])) == UNETS[name]


@given(unet_layouts())
@settings(max_examples=25)
def test_any_unet(drawn):
    layout = unet_layout(drawn)
    assert detect_unet_layout(unet_shapes(layout), **hints(layout)) == layout


def test_distilled_guidance():
    layout = replace(SSD_1B, guidance_embed_dim=256)
    assert detect_unet_layout(unet_shapes(layout)) == layout


def test_vae():
    with torch.device("meta"):
        assert detect_vae_layout(shapes(VAE(VAELayout()))) == VAELayout()
        assert detect_vae_layout(shapes(VAE(TINY.vae)), norm_groups=4, scaling_factor=0.5) == TINY.vae


@pytest.mark.parametrize("layout", [CLIP_L, CLIP_BIGG], ids=["L", "bigG"])
def test_text_encoders_of_sdxl_need_no_configuration(layout):
    with torch.device("meta"):
        assert detect_text_layout(shapes(TextEncoder(layout)), second=layout is CLIP_BIGG) == layout


def test_text_encoder_with_told_heads():
    tiny = shapes(modules(TINY)["text_encoder_2"])
    assert detect_text_layout(tiny, second=True, heads=3) == TINY.text_encoder_2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv_in.weight"), "conv_in.weight is missing"),
        (lambda s: s.pop("add_embedding.linear_1.weight"), "add_embedding.linear_1.weight is missing"),
        (
            lambda s: s.update({"conv_in.weight": (320,)}),
            r"conv_in.weight has shape \[320\], expected 4 axes",
        ),
        (lambda s: s.update({"conv_out.weight": (0, 320, 3, 3)}), "conv_out.weight has shape"),
        (lambda s: s.update({"add_embedding.linear_1.weight": (1280, 1536)}), "too narrow"),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("up_blocks.0.resnets.2")],
            "level 2: up must have 3",
        ),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("down_blocks.1.attentions.1")],
            "mixes resnets",
        ),
        (lambda s: [s.pop(n) for n in list(s) if ".attn2." in n], "attn2.to_k.weight is missing"),
        (lambda s: [s.pop(n) for n in list(s) if n.startswith("down_blocks")], "no down_blocks"),
    ],
)
def test_what_is_no_unet_is_named(change, message):
    given_shapes = unet_shapes(SDXL)
    change(given_shapes)
    with pytest.raises(InputError, match=message):
        detect_unet_layout(given_shapes)


def test_widths_that_the_assumed_head_size_does_not_fit_are_named():
    with pytest.raises(InputError, match=r"widths 8, 16, 32 are not multiples of norm_groups 32"):
        detect_unet_layout(unet_shapes(TINY.unet), time_ids_dim=4)
    with pytest.raises(InputError, match=r"widths 16, 32 are not multiples of head_dim 64"):
        detect_unet_layout(unet_shapes(TINY.unet), time_ids_dim=4, norm_groups=4)
    with pytest.raises(InputError, match=r"24 channels do not divide into heads of 64"):
        detect_text_layout(shapes(modules(TINY)["text_encoder_2"]), second=True)


def test_absurd_numbering_costs_nothing():
    given_shapes = unet_shapes(TINY.unet)
    given_shapes["down_blocks.999999999999.resnets.0.conv1.weight"] = (8, 8, 3, 3)
    given_shapes["down_blocks.1.attentions.0.transformer_blocks.999999999999.norm1.weight"] = (16,)
    assert detect_unet_layout(given_shapes, **hints(TINY.unet)) == TINY.unet
