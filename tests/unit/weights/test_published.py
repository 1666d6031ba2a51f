"""Names of the published single files, as a third party recorded them, and every other known spelling."""

import lzma
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd1b.errors import InputError
from ssd1b.layouts import CLIP_BIGG, CLIP_L, UNETS, ModelLayout, model_layout
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.detect import make_part
from ssd1b.weights.files import Header, read_header
from ssd1b.weights.keymap import ORIGINAL_PREFIXES, PARTS
from ssd1b.weights.loading import load_component, read_part
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.spellings import sections
from ssd1b.weights.stored import locate_tensors
from ssd1b.weights.writing import PUBLISHED, published_tensors, save_single_file
from tiny import TINY, tiny

from .cases import modules, random_weights

KEYS: dict[str, list[str]] = {}
for section in (
    lzma.decompress((Path(__file__).parents[2] / "data" / "published-keys.txt.xz").read_bytes())
    .decode()[2:]
    .split("# ")
):
    title, *listed = section.split()
    KEYS[title] = listed


def narrow(name: str) -> ModelLayout:
    """A published model's tensors, name by name, in small width."""
    layout = tiny(UNETS[name])
    return replace(
        layout,
        vae=replace(layout.vae, channels=(4, 8, 16, 16), layers_per_block=2),
        text_encoder=replace(layout.text_encoder, layers=CLIP_L.layers),
        text_encoder_2=replace(layout.text_encoder_2, layers=CLIP_BIGG.layers),
    )


def header_of(tensors: dict[str, torch.Tensor]) -> Header:
    formats = {torch.int64: "I64"}
    return Header({n: (formats.get(t.dtype, "F32"), tuple(t.shape)) for n, t in tensors.items()}, {})


@pytest.mark.parametrize("name", PUBLISHED)
def test_at_full_size_names_and_shapes_are_written_and_read(name):
    layout = model_layout(name)
    weights = {part: module.state_dict() for part, module in modules(layout).items()}
    tensors = published_tensors(weights, name)
    assert sorted(tensors) == sorted(KEYS[name])
    header = header_of(tensors)
    for part, found in sections(header.tensors).items():
        table = locate_tensors(part, Path("x"), found, header)
        assert {n: t.shape for n, t in table.items()} == {n: tuple(t.shape) for n, t in weights[part].items()}
        assert make_part(part, table, None, "x").layout == getattr(layout, part)


@pytest.mark.parametrize("name", PUBLISHED)
def test_in_small_width_a_file_of_the_published_names_is_read_to_the_bit(tmp_path, name):
    layout = narrow(name)
    weights = random_weights(layout)
    file = tmp_path / f"{name}.safetensors"
    save_single_file(file, ModelInfo(layout=layout), weights, spelling=name)
    assert sorted(read_header(file).tensors) == sorted(KEYS[name])
    checkpoint = open_checkpoint(file)
    assert checkpoint.info.layout == layout
    assert checkpoint.family == name
    for part in PARTS:
        tensors = read_part(checkpoint, part)
        assert tensors.keys() == weights[part].keys()
        assert all(torch.equal(tensors[each], weights[part][each]) for each in tensors)


def test_an_unknown_published_file_is_named(tmp_path, tiny_info, tiny_weights):
    with pytest.raises(InputError, match="unknown spelling 'ssd1b': did you mean 'ssd-1b'"):
        save_single_file(tmp_path / "x.safetensors", tiny_info, tiny_weights, spelling="ssd1b")


def renamed(*changes: tuple[str, str]):
    def change(name: str) -> str:
        for old, new in changes:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return change


UNET, VAE, TE1, TE2 = (ORIGINAL_PREFIXES[part] for part in PARTS)
SPELLINGS = {
    "unet.": renamed((UNET, "unet.")),
    "diffusion_model.": renamed((UNET, "diffusion_model.")),
    "model. doubled": renamed((UNET, "model." + UNET)),
    "the UNet's prefix doubled": renamed((UNET, UNET + UNET)),
    "model. before everything": lambda name: "model." + name,
    "module. of DataParallel": lambda name: "module." + name,
    "compiled": renamed((UNET, "model._orig_mod.diffusion_model._orig_mod.")),
    "the UNet without a prefix": renamed((UNET, "")),
    "model. alone": renamed((UNET, "model.")),
    "vae.": renamed((VAE, "vae.")),
    "the VAE without a prefix": renamed((VAE, "")),
    "cond_stage_model": renamed((TE1, "cond_stage_model.transformer."), (TE2, "cond_stage_model.1.model.")),
    "te1, te2": renamed((TE1, "te1."), (TE2, "te2.")),
    "te": renamed((TE1, "te.")),
    "text_encoder": renamed((TE1, "text_encoder."), (TE2, "text_encoder_2.")),
    "text_encoder.2": renamed((TE2, "text_encoder.2.")),
    "text_encoders.": renamed((TE1, "text_encoders.clip_l.transformer."), (TE2, "text_encoders.clip_g.")),
    "clip_l": renamed((TE1, "clip_l.transformer."), (TE2, "clip_g.")),
    "without transformer.": renamed((TE1, "conditioner.embedders.0.")),
    "without text_model.": renamed((TE1 + "text_model.", TE1)),
    "text_model. doubled": renamed((TE1, TE1 + "text_model.")),
    "without model.": renamed((TE2, "conditioner.embedders.1.")),
}  # fmt: skip


def assert_read(file, layout, weights):
    """The file is a whole model with these weights; what it has beside them is returned."""
    checkpoint = open_checkpoint(file)
    assert checkpoint.info.layout == layout
    for part, module in modules(layout).items():
        load_component(module, checkpoint, part, dtype=torch.float32)
        assert all(torch.equal(t, weights[part][n]) for n, t in module.state_dict().items())
    return checkpoint.unused_tensors


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_known_prefix_is_read(tmp_path, tiny_file, tiny_info, tiny_weights, spelling):
    told = read_header(tiny_file).metadata
    tensors = published_tensors(tiny_weights, "ssd-1b")
    file = tmp_path / "x.safetensors"
    save_file({SPELLINGS[spelling](name): tensor for name, tensor in tensors.items()}, file, metadata=told)
    other = assert_read(file, TINY, tiny_weights)
    assert all(name.endswith("position_ids") for name in other)
    assert len(other) == 2


@pytest.mark.parametrize(
    ("prefix", "projection"),
    [
        ("conditioner.embedders.1.model.transformer.", "text_projection.weight"),
        ("conditioner.embedders.1.model.", "text_projection.weight.weight"),
        ("te2.", "text_projection.weight"),
        ("clip_g.transformer.", "text_model.text_projection.weight"),
        ("conditioner.embedders.1.transformer.", "text_projection.weight"),
    ],
)
def test_the_second_encoder_in_transformers_names(tmp_path, tiny_file, tiny_weights, prefix, projection):
    tensors = {name: t for name, t in load_file(tiny_file).items() if not name.startswith(TE2)}
    for name, tensor in tiny_weights["text_encoder_2"].items():
        tensors[prefix + name.replace("text_projection.weight", projection)] = tensor
    tensors["conditioner.embedders.1.model.attn_mask"] = torch.zeros(77, 77)
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata=read_header(tiny_file).metadata)
    assert assert_read(file, TINY, tiny_weights) == ("conditioner.embedders.1.model.attn_mask",)


def test_openclips_and_transformers_names_may_be_mixed(tmp_path, tiny_file, tiny_weights):
    """As in SSD-1B's file, and further."""
    tensors = load_file(tiny_file)
    del tensors[TE2 + "text_projection"], tensors[TE2 + "ln_final.weight"]
    ours = tiny_weights["text_encoder_2"]
    tensors[TE2 + "transformer.text_projection.weight"] = ours["text_projection.weight"]
    tensors[TE2 + "transformer.text_model.final_layer_norm.weight"] = ours[
        "text_model.final_layer_norm.weight"
    ]
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata=read_header(tiny_file).metadata)
    assert assert_read(file, TINY, tiny_weights) == ()


def test_networks_in_diffusers_names_under_the_original_prefixes(tmp_path, tiny_file, tiny_weights):
    tensors = {ORIGINAL_PREFIXES[part] + n: t for part in PARTS for n, t in tiny_weights[part].items()}
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata=read_header(tiny_file).metadata)
    assert assert_read(file, TINY, tiny_weights) == ()


def test_of_twins_the_wider_is_taken_and_the_other_named(tmp_path, tiny_file, tiny_weights):
    tensors = load_file(tiny_file)
    twins = {
        "unet." + name.removeprefix(UNET): tensor.half()
        for name, tensor in tensors.items()
        if name.startswith(UNET)
    }
    averages = {"model_ema.diffusion_modelout2bias": torch.zeros(4), "model_ema.num_updates": torch.zeros(())}
    file = tmp_path / "x.safetensors"
    save_file({**twins, **averages, **tensors}, file, metadata=read_header(tiny_file).metadata)
    assert assert_read(file, TINY, tiny_weights) == tuple(sorted([*twins, *averages]))


def test_a_few_tensors_in_another_place_complete_a_network(tmp_path, tiny_file, tiny_weights):
    tensors = load_file(tiny_file)
    tensors["unet.out.2.bias"] = tensors.pop(UNET + "out.2.bias")
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata=read_header(tiny_file).metadata)
    assert assert_read(file, TINY, tiny_weights) == ()


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_bare_text_encoder_is_known_by_its_width(tmp_path, part):
    layout = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_BIGG}[part]
    small = replace(layout, layers=1, vocab_size=100, bos_token_id=98, eos_token_id=99, intermediate_size=4)
    small = replace(small, pad_token_id=small.eos_token_id if part == "text_encoder" else 0)
    module = modules(replace(TINY, **{part: small}), "cpu")[part]
    save_file(module.state_dict(), tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert (checkpoint.format, checkpoint.parts[part].layout) == (f"single {part} file", small)
