"""The two spellings of the weights: one to one, and what other programs recognise."""

import pytest
import torch
from hypothesis import given, settings

from ssd1b.layouts import CLIP_BIGG, CLIP_L, UNETS, VAELayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.vae import VAE
from ssd1b.weights.keymap import ORIGINAL_PREFIXES, PARTS, from_original, our_name, to_original
from ssd1b.weights.writing import original_tensors
from tiny import TINY

from .cases import PUBLISHED, modules, random_weights, shapes, unet_layout, unet_layouts, unet_shapes


def assert_one_to_one(part, names):
    """Every name has an original one, and the originals give exactly these names back."""
    originals = to_original(part, names)
    assert set(originals) == set(names)
    places = {original for original, _ in originals.values()}
    back = {
        ours: (original, form)
        for original, pieces in from_original(part, places).items()
        for ours, form in pieces
    }
    assert back == originals


@pytest.mark.parametrize("name", PUBLISHED)
def test_unet_names_are_one_to_one(name):
    names = unet_shapes(PUBLISHED[name])
    assert_one_to_one("unet", names)
    assert len({original for original, _ in to_original("unet", names).values()}) == len(names)


@given(unet_layouts())
@settings(max_examples=25)
def test_any_unet_names_are_one_to_one(drawn):
    assert_one_to_one("unet", unet_shapes(unet_layout(drawn)))


@pytest.mark.parametrize("layout", [VAELayout(), TINY.vae], ids=["sdxl", "tiny"])
def test_vae_names_are_one_to_one(layout):
    with torch.device("meta"):
        assert_one_to_one("vae", shapes(VAE(layout)))


@pytest.mark.parametrize(("part", "layout"), [("text_encoder", CLIP_L), ("text_encoder_2", CLIP_BIGG)])
def test_text_encoder_names_are_one_to_one(part, layout):
    with torch.device("meta"):
        assert_one_to_one(part, shapes(TextEncoder(layout)))


def test_tensors_survive_the_way_to_the_original_spelling_and_back():
    for part, weights in random_weights(TINY).items():
        original = original_tensors(part, weights)
        back = {
            ours: (form, original[name])
            for name, pieces in from_original(part, original).items()
            for ours, form in pieces
        }
        assert back.keys() == weights.keys()
        for name, (form, stored) in back.items():
            assert form.shape(tuple(stored.shape)) == tuple(weights[name].shape)
            assert torch.equal(form.read(stored), weights[name]), name


def test_order_of_a_state_dict_does_not_shuffle_a_stacked_projection():
    weights = random_weights(TINY)["text_encoder_2"]
    forwards = original_tensors("text_encoder_2", weights)
    backwards = original_tensors("text_encoder_2", dict(reversed(weights.items())))
    name = "transformer.resblocks.1.attn.in_proj_weight"
    q = weights["text_model.encoder.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(forwards[name], backwards[name])
    assert torch.equal(forwards[name][: len(q)], q)


def test_unknown_names_are_left_out_and_never_guessed():
    known = [original for original, _ in to_original("unet", unet_shapes(TINY.unet)).values()]
    strangers = ["input_blocks.99.0.in_layers.0.weight", "out.7.weight", "", ".", "lora.up", "input_blocks"]
    assert from_original("unet", [*known, *strangers]).keys() == set(known)
    with pytest.raises(KeyError):
        to_original("unet", ["down_blocks.0.resnets.0.conv3.weight"])


@pytest.mark.parametrize(
    ("part", "name", "ours"),
    [
        ("text_encoder", "embeddings.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("text_encoder", "text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        (
            "text_encoder_2",
            "transformer.text_model.final_layer_norm.bias",
            "text_model.final_layer_norm.bias",
        ),
        ("text_encoder_2", "text_model.text_projection.weight", "text_projection.weight"),
        ("text_encoder_2", "text_projection.weight", "text_projection.weight"),
        ("vae", "encoder.mid_block.attentions.0.query.bias", "encoder.mid_block.attentions.0.to_q.bias"),
        (
            "vae",
            "decoder.mid_block.attentions.0.proj_attn.bias",
            "decoder.mid_block.attentions.0.to_out.0.bias",
        ),
        (
            "vae",
            "decoder.mid_block.attentions.0.to_out.0.bias",
            "decoder.mid_block.attentions.0.to_out.0.bias",
        ),
        ("unet", "conv_in.bias", "conv_in.bias"),
    ],
)
def test_older_and_newer_spellings_of_a_folder(part, name, ours):
    assert our_name(part, name) == ours


def depths_as_comfyui_counts_them(names):
    """ComfyUI's view of a UNet (``detect_unet_config``): depth per input, middle and output block.

    It walks the input blocks and looks at the output block of the same number counted from the end; the
    middle is -1 for a single resnet and -2 for none.
    """

    def depth(block):
        start = f"{block}.1.transformer_blocks."
        return len({name.removeprefix(start).partition(".")[0] for name in names if name.startswith(start)})

    number = len({name.split(".")[1] for name in names if name.startswith("input_blocks.")})
    resnets = [i for i in range(number) if f"input_blocks.{i}.0.in_layers.0.weight" in names]
    down = [depth(f"input_blocks.{i}") for i in resnets]
    outputs = [number - 1 - i for i in range(number)]
    up = [depth(f"output_blocks.{i}") for i in outputs if f"output_blocks.{i}.0.in_layers.0.weight" in names]
    if "middle_block.1.proj_in.weight" in names:
        middle = depth("middle_block")
    else:
        middle = -1 if "middle_block.0.in_layers.0.weight" in names else -2
    return down, middle, up


# comfy/supported_models.py and comfy/model_detection.py: what its classes match.
COMFYUI = {
    "sdxl": ([0, 0, 2, 2, 10, 10], 10, [0, 0, 0, 2, 2, 2, 10, 10, 10]),
    "ssd-1b": ([0, 0, 2, 2, 4, 4], -1, [0, 0, 0, 1, 1, 2, 10, 4, 4]),
    "vega": ([0, 0, 1, 1, 2, 2], -1, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    "koala-1b": ([0, 2, 6], 6, [0, 0, 2, 2, 6, 6]),
    "koala-700m": ([0, 2, 5], -2, [0, 0, 2, 2, 5, 5]),
}


@pytest.mark.parametrize("name", COMFYUI)
def test_comfyui_recognises_what_we_write(name):
    names = {original for original, _ in to_original("unet", unet_shapes(UNETS[name])).values()}
    assert depths_as_comfyui_counts_them(names) == COMFYUI[name]


def test_stable_diffusion_cpp_and_automatic1111_recognise_what_we_write():
    for name, layout in UNETS.items():
        names = {original for original, _ in to_original("unet", unet_shapes(layout)).values()}
        has_middle = any(n.startswith("middle_block.1.") for n in names)
        assert ("middle_block.1.transformer_blocks.0.attn1.to_q.weight" in names) == has_middle
        assert has_middle == (name in ("sdxl", "koala-1b"))
        if name in ("ssd-1b", "vega"):
            second = any(n.startswith("output_blocks.3.1.transformer_blocks.1.") for n in names)
            assert second == (name == "ssd-1b")


def test_every_part_has_a_place_of_its_own():
    names = [
        ORIGINAL_PREFIXES[part] + original
        for part, module in modules(TINY).items()
        for original in original_tensors(part, module.state_dict())
    ]
    assert len(set(names)) == len(names)
    assert set(ORIGINAL_PREFIXES) == set(PARTS)
