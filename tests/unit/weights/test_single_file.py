"""Single-file checkpoints, bare networks."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd1b.errors import InputError
from ssd1b.layouts import SSD_1B
from ssd1b.weights.checkpoint import SDXL_SCHEDULER
from ssd1b.weights.files import first_few, read_header
from ssd1b.weights.keymap import ORIGINAL_PREFIXES, PARTS
from ssd1b.weights.loading import load_component, read_part
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.writing import original_tensors, save_folder, save_single_file
from tiny import TINY

from .cases import modules, unet_shapes


def metadata(path):
    return read_header(path).metadata


def test_what_is_written_is_read_back(tiny_file, tiny_info, tiny_weights):
    checkpoint = open_checkpoint(tiny_file)
    assert checkpoint.info == tiny_info
    assert (checkpoint.format, checkpoint.notes) == ("single file", ())
    for part, weights in tiny_weights.items():
        tensors = read_part(checkpoint, part)
        assert tensors.keys() == weights.keys()
        assert all(torch.equal(tensors[name], weights[name]) for name in weights)
        assert checkpoint.parts[part].parameters == sum(tensor.numel() for tensor in weights.values())


def test_the_way_through_both_formats_changes_no_bit(tmp_path, tiny_file):
    single = open_checkpoint(tiny_file)
    save_folder(tmp_path / "folder", single.info, {part: read_part(single, part) for part in PARTS})
    folder = open_checkpoint(tmp_path / "folder")
    again = tmp_path / "again.safetensors"
    save_single_file(again, folder.info, {part: read_part(folder, part) for part in PARTS})
    assert read_header(again) == read_header(tiny_file)
    before, after = load_file(tiny_file), load_file(again)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("save", [save_folder, save_single_file])
def test_the_declared_world_is_kept(tmp_path, tiny_info, tiny_weights, save):
    save(tmp_path / "model.safetensors", replace(tiny_info, world="tabletop"), tiny_weights)
    assert open_checkpoint(tmp_path / "model.safetensors").info.world == "tabletop"


def test_tensors_have_the_names_and_shapes_that_other_programs_look_for(tiny_file):
    tensors = read_header(tiny_file).tensors
    prefix = "conditioner.embedders.1.model."
    assert tensors[prefix + "text_projection"][1] == (24, 12)
    assert tensors[prefix + "positional_embedding"][1] == (77, 24)
    assert tensors[prefix + "transformer.resblocks.0.attn.in_proj_weight"][1] == (72, 24)
    assert tensors[prefix + "transformer.resblocks.0.attn.in_proj_bias"][1] == (72,)
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"][1] == (16, 16, 1, 1)
    assert tensors["first_stage_model.encoder.mid.attn_1.q.bias"][1] == (16,)
    assert "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight" in tensors
    assert "model.diffusion_model.middle_block.0.in_layers.0.weight" in tensors
    assert not any("middle_block.1" in name or "middle_block.2" in name for name in tensors)


def test_number_format(tmp_path, tiny_info, tiny_weights):
    save_single_file(tmp_path / "half.safetensors", tiny_info, tiny_weights, dtype=torch.float16)
    header = read_header(tmp_path / "half.safetensors")
    assert {number_format for number_format, _ in header.tensors.values()} == {"F16"}


def test_without_our_metadata_the_family_is_assumed(tmp_path):
    """As published files are: meta shapes of SSD-1B at full size would do, but a file must hold its bytes."""
    layout = replace(SSD_1B, levels=tuple(replace(level, channels=64) for level in SSD_1B.levels))
    layout = replace(layout, cross_attention_dim=8, pooled_dim=4)
    unet = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in unet_shapes(layout).items()}
    prefix = ORIGINAL_PREFIXES["unet"]
    tensors = {prefix + name: tensor for name, tensor in original_tensors("unet", unet).items()}
    save_file(tensors, tmp_path / "unet.safetensors")
    checkpoint = open_checkpoint(tmp_path / "unet.safetensors")
    assert checkpoint.unet == layout
    assert (checkpoint.size, checkpoint.scheduler, checkpoint.family) == (1024, SDXL_SCHEDULER, "ssd-1b")
    assert checkpoint.format == "single unet file"


@pytest.mark.parametrize("original", [True, False])
def test_bare_networks_in_either_spelling(tmp_path, tiny_info, tiny_weights, tiny_file, original):
    for part in ("unet", "vae"):
        weights = tiny_weights[part]
        file = tmp_path / f"{part}.safetensors"
        save_file(
            original_tensors(part, weights) if original else weights, file, metadata=metadata(tiny_file)
        )
        checkpoint = open_checkpoint(file)
        assert (checkpoint.format, list(checkpoint.parts)) == (f"single {part} file", [part])
        assert checkpoint.parts[part].layout == getattr(TINY, part)
        module = modules(TINY)[part]
        load_component(module, checkpoint, part, dtype=torch.float32)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
        with pytest.raises(InputError, match=f"not a complete model: it has {part} but no"):
            _ = checkpoint.info


@pytest.mark.parametrize(
    ("markers", "change"),
    [
        ((), {}),
        (("v_pred",), {"prediction_type": "v_prediction"}),
        (
            ("v_pred", "ztsnr"),
            {
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
        ),
    ],
)
def test_comfyuis_marks_of_v_prediction(tmp_path, tiny_file, tiny_info, tiny_weights, markers, change):
    tensors = load_file(tiny_file)
    told = {
        "ssd1b": json.dumps(
            {k: v for k, v in json.loads(metadata(tiny_file)["ssd1b"]).items() if k != "scheduler"}
        )
    }
    save_file(
        {**tensors, **{name: torch.empty(0) for name in markers}},
        tmp_path / "foreign.safetensors",
        metadata=told,
    )
    checkpoint = open_checkpoint(tmp_path / "foreign.safetensors")
    assert checkpoint.scheduler == {**SDXL_SCHEDULER, **change}
    assert checkpoint.unused_tensors == ()

    save_single_file(tmp_path / "ours.safetensors", checkpoint.info, tiny_weights)
    assert {name for name in read_header(tmp_path / "ours.safetensors").tensors if "." not in name} == set(
        markers
    )
    assert open_checkpoint(tmp_path / "ours.safetensors").scheduler == checkpoint.scheduler


def test_edm_models_are_refused(tmp_path, tiny_file):
    save_file({**load_file(tiny_file), "edm_mean": torch.zeros(4)}, tmp_path / "edm.safetensors")
    with pytest.raises(InputError, match="an EDM model"):
        open_checkpoint(tmp_path / "edm.safetensors")


def test_leftovers_of_training_are_ignored_and_told(tmp_path, tiny_file):
    leftovers = {
        "model_ema.decay": torch.zeros(()),
        "denoiser.sigmas": torch.zeros(1000),
        "conditioner.embedders.1.model.logit_scale": torch.zeros(()),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    save_file(
        {**load_file(tiny_file), **leftovers}, tmp_path / "more.safetensors", metadata=metadata(tiny_file)
    )
    checkpoint = open_checkpoint(tmp_path / "more.safetensors")
    assert checkpoint.unused_tensors == (
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale",
        "denoiser.sigmas",
        "model_ema.decay",
    )
    assert checkpoint.notes == (f"4 tensors not needed and ignored: {first_few(checkpoint.unused_tensors)}",)
    for part, module in modules(TINY).items():
        load_component(module, checkpoint, part, dtype=torch.float32)


def test_unknown_tensors_of_a_network_are_named_when_it_is_loaded(tmp_path, tiny_file):
    name = "model.diffusion_model.input_blocks.1.0.in_layers.2.scale_weight.lost"
    save_file(
        {**load_file(tiny_file), name: torch.zeros(3)},
        tmp_path / "x.safetensors",
        metadata=metadata(tiny_file),
    )
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="unet: 1 unknown tensor"):
        load_component(modules(TINY)["unet"], checkpoint, "unet", dtype=torch.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"lora_unet_mid_block.lora_down.weight": torch.zeros(1)},
            "a LoRA, which modifies a model: give the model",
        ),
        (
            {"something.weight": torch.zeros(1)},
            "no network of SDXL's family; it contains something.weight",
        ),
        ({}, "no network of SDXL's family"),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)},
            "unet: not a UNet of SDXL's",
        ),
        (
            {"model.diffusion_model.out.2.bias": torch.zeros(4, dtype=torch.int8)},
            "quantized weights, are not supported: .*out.2.bias' is I8, not one of F64",
        ),
    ],
)
def test_files_that_hold_something_else(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "told", ["[]", "{", '{"unet": 3}', '{"settings": 3}', '{"unet": {"in_channels": 9}}']
)
def test_damaged_metadata_is_named(tmp_path, tiny_file, told):
    save_file(load_file(tiny_file), tmp_path / "x.safetensors", metadata={"ssd1b": told})
    with pytest.raises(InputError, match=r"x\.safetensors: (metadata|unet)"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_8_bit_floats_are_read_and_told(tmp_path, tiny_file, tiny_weights):
    tensors = load_file(tiny_file)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata(tiny_file))
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.notes == ("unet mixes number formats: float32, float8_e4m3fn",)
    assert read_part(checkpoint, "unet")["conv_in.weight"].dtype == torch.float8_e4m3fn
    read = read_part(checkpoint, "unet", dtype=torch.float32)["conv_in.weight"]
    assert torch.equal(read, tiny_weights["unet"]["conv_in.weight"].to(torch.float8_e4m3fn).float())


def test_a_file_that_is_there_is_not_overwritten_unless_asked(tmp_path, tiny_info, tiny_weights):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(InputError, match="already exists: choose another name, or add --overwrite"):
        save_single_file(target, tiny_info, tiny_weights)
    assert target.read_bytes() == b"old"
    save_single_file(target, tiny_info, tiny_weights, overwrite=True)
    assert open_checkpoint(target).info == tiny_info
    with pytest.raises(InputError, match="a folder has that name"):
        save_single_file(tmp_path, tiny_info, tiny_weights, overwrite=True)


def test_a_vocabulary_of_its_own_does_not_fit_into_a_file(tmp_path, tiny_info, tiny_weights):
    text = replace(TINY.text_encoder, vocab_size=1024)
    info = replace(tiny_info, layout=replace(TINY, text_encoder=text))
    with pytest.raises(InputError, match="cannot hold a tokenizer other than CLIP's"):
        save_single_file(tmp_path / "model.safetensors", info, tiny_weights)


CLIP_L_PROJECTION = "conditioner.embedders.0.transformer.text_projection.weight"


def test_a_projection_of_the_first_text_encoder_decides_nothing(tmp_path, tiny_file, tiny_weights):
    told = {name: value for name, value in json.loads(metadata(tiny_file)["ssd1b"]).items()}
    del told["text_encoder"]["hidden_act"], told["text_encoder_2"]["architectures"]
    tensors = load_file(tiny_file)
    tensors[CLIP_L_PROJECTION] = torch.zeros(16, 16)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"ssd1b": json.dumps(told)})
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.info.layout == TINY
    assert checkpoint.unused_tensors == (CLIP_L_PROJECTION,)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.arange(1.0, 9.0)])
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_scaled_8_bit_floats_are_read_with_their_scale(tmp_path, tiny_file, tiny_weights, scale, name):
    tensors = load_file(tiny_file)
    layer = "model.diffusion_model.input_blocks.0.0"
    factor = scale.reshape(-1, 1, 1, 1) if scale.ndim else scale
    stored = (tensors[f"{layer}.weight"] / factor).to(torch.float8_e4m3fn)
    tensors |= {
        f"{layer}.weight": stored,
        f"{layer}.{name}": scale,
        f"{layer}.scale_input": torch.ones(1),
        "model.diffusion_model.scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata(tiny_file))
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    read = read_part(checkpoint, "unet", dtype=torch.float32)["conv_in.weight"]
    assert torch.equal(read, stored.float() * factor)
    assert checkpoint.unused_tensors == (f"{layer}.scale_input", "model.diffusion_model.scaled_fp8")
    load_component(modules(TINY)["unet"], checkpoint, "unet", dtype=torch.bfloat16)


def test_scales_of_another_kind_are_named(tmp_path, tiny_file):
    tensors = load_file(tiny_file)
    layer = "model.diffusion_model.input_blocks.0.0"
    tensors |= {
        f"{layer}.weight": tensors[f"{layer}.weight"].to(torch.float8_e4m3fn),
        f"{layer}.weight_scale": torch.ones(4, 3),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata(tiny_file))
    with pytest.raises(InputError, match=r"scaled fp8: .* is F32 \[4, 3\] for a weight \[8, 4, 3, 3\]"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("beside", "number", "message"),
    [
        ("weight.absmax", torch.uint8, r"4 bits of bitsandbytes \(NF4 or FP4\)"),
        ("weight.quant_state.bitsandbytes__nf4", torch.uint8, "NF4 of bitsandbytes"),
        ("SCB", torch.int8, "int8 of bitsandbytes"),
        ("comfy_quant", torch.int8, "ComfyUI"),
        ("qzeros", torch.int32, "GPTQ or AWQ"),
        ("other", torch.int8, "other number formats, such as quantized weights, are not supported"),
    ],
)
def test_quantized_weights_are_named(tmp_path, tiny_file, beside, number, message):
    tensors = load_file(tiny_file)
    layer = "model.diffusion_model.input_blocks.0.0"
    tensors |= {
        f"{layer}.weight": tensors[f"{layer}.weight"].to(number),
        f"{layer}.{beside}": torch.zeros(3, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata(tiny_file))
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "x.safetensors")


def test_the_vaes_losses_are_ignored_and_named(tmp_path, tiny_file):
    extra = {
        "first_stage_model.loss.logvar": torch.zeros(()),
        "first_stage_model.loss.lpips.w": torch.zeros(3),
    }
    save_file({**load_file(tiny_file), **extra}, tmp_path / "x.safetensors", metadata=metadata(tiny_file))
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.unused_tensors == tuple(extra)
    load_component(modules(TINY)["vae"], checkpoint, "vae", dtype=torch.float32)


def conv(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": conv()}, "a LoRA"),
        ({"unet.down_blocks.1.attentions.0.proj_in.lora_A.weight": conv(4, 4)}, "a LoRA"),
        ({"lycoris_down_blocks_1.lokr_w1": conv(4, 4)}, "a LoRA"),
        ({"controlnet_cond_embedding.conv_in.weight": conv(16, 3, 3, 3)}, "a ControlNet"),
        ({"control_model.input_blocks.0.0.weight": conv(320, 4, 3, 3)}, "a ControlNet"),
        ({"image_proj.norm.bias": conv(4)}, "an IP-Adapter"),
        ({"clip_g": conv(2, 1280), "clip_l": conv(2, 768)}, "an embedding"),
        ({"down_blocks.0.motion_modules.0.norm.weight": conv(4)}, "a motion module"),
        ({"model.diffusion_model.double_blocks.0.img_attn.proj.weight": conv(4, 4)}, "a Flux model"),
        ({"model.diffusion_model.joint_blocks.0.x.weight": conv(4, 4)}, "a Stable Diffusion 3 model"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": conv(4, 4)}, "a T5 text encoder"),
        ({"taesd_decoder.1.weight": conv(4, 4, 3, 3)}, "a tiny autoencoder"),
        ({"vision_model.embeddings.class_embedding": conv(4)}, "an image encoder"),
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": conv(320, 4, 3, 3),
                "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": conv(
                    320, 768
                ),
            },
            "a Stable Diffusion 1 model",
        ),
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": conv(320, 4, 3, 3),
                "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": conv(
                    320, 1024
                ),
            },
            "a Stable Diffusion 2 model",
        ),
    ],
)
def test_what_is_no_model_of_the_family_is_named_for_what_it_is(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(
        InputError, match=f"x.safetensors: {message}.*; only models of SDXL's family are supported"
    ):
        open_checkpoint(tmp_path / "x.safetensors")
