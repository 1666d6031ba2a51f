"""Diffusers folders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd1b.errors import InputError
from ssd1b.layouts import SDXL, SSD_1B
from ssd1b.weights.checkpoint import SDXL_SCHEDULER, Checkpoint, ModelInfo, Part
from ssd1b.weights.keymap import PARTS
from ssd1b.weights.loading import read_part
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.writing import save_folder
from tiny import TINY


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(path, **change):
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_what_is_written_is_read_back(tiny_folder, tiny_weights):
    checkpoint = open_checkpoint(tiny_folder)
    assert checkpoint.info.layout == TINY
    assert checkpoint.format == "diffusers folder"
    assert (checkpoint.name, checkpoint.family, checkpoint.notes) == ("custom", "ssd-1b", ())
    assert checkpoint.scheduler == SDXL_SCHEDULER
    assert checkpoint.settings == {"steps": 7}
    assert checkpoint.force_zeros_for_empty_prompt
    assert list(checkpoint.parts) == list(PARTS)
    for part, weights in tiny_weights.items():
        tensors = read_part(checkpoint, part)
        assert tensors.keys() == weights.keys()
        assert all(torch.equal(tensors[name], weights[name]) for name in weights)
        assert checkpoint.parts[part].parameters == sum(tensor.numel() for tensor in weights.values())
        assert checkpoint.parts[part].size_in_bytes == 4 * checkpoint.parts[part].parameters
        assert checkpoint.parts[part].dtypes == {torch.float32: len(weights)}


def test_everything_beside_the_weights_survives(tmp_path, tiny_weights, tiny_folder):
    info = replace(
        open_checkpoint(tiny_folder).info,
        scheduler={**SDXL_SCHEDULER, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        force_zeros_for_empty_prompt=False,
        settings={"guidance_scale": 4.5},
    )
    save_folder(tmp_path / "copy", info, tiny_weights, dtype=torch.bfloat16)
    copy = open_checkpoint(tmp_path / "copy")
    assert replace(copy.info, tokenizers={}) == replace(info, tokenizers={})
    assert copy.parts["unet"].dtypes == {torch.bfloat16: len(tiny_weights["unet"])}
    assert copy.notes == ("the UNet predicts the velocity (v-prediction)",)
    for tokenizer in ("tokenizer", "tokenizer_2"):
        for file in (tiny_folder / tokenizer).iterdir():
            assert (tmp_path / "copy" / tokenizer / file.name).read_bytes() == file.read_bytes()


def test_a_folder_that_is_there_is_not_overwritten(folder, tiny_info, tiny_weights):
    (folder / "mine").touch()
    with pytest.raises(InputError, match="already exists"):
        save_folder(folder, tiny_info, tiny_weights)
    assert (folder / "mine").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_broken_weights_are_not_written(tmp_path, tiny_info, tiny_weights):
    name = "conv_in.bias"
    for value, dtype in ((float("nan"), None), (1e5, torch.float16)):
        unet = {**tiny_weights["unet"], name: torch.full_like(tiny_weights["unet"][name], value)}
        with pytest.raises(InputError, match=f"unet: NaN or infinity in 1 tensor.*: {name}"):
            save_folder(tmp_path / "model", tiny_info, {**tiny_weights, "unet": unet}, dtype=dtype)
        assert not list(tmp_path.iterdir())


def test_weights_of_another_layout_are_not_written(tmp_path, tiny_info, tiny_weights):
    student = replace(TINY, unet=replace(TINY.unet, mid=None))
    with pytest.raises(InputError, match="unet: config and weights contradict each other: mid is None"):
        save_folder(tmp_path / "model", replace(tiny_info, layout=student), tiny_weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "unet",
            {"cross_attention_dim": 2048},
            "cross_attention_dim is 2048 in the config, 40 in the weights",
        ),
        ("unet", {"transformer_layers_per_block": [1, 2, 3]}, r"level 2 is .*\(3, 3\).* in the config"),
        ("unet", {"block_out_channels": [8, 16, 64], "attention_head_dim": [1, 2, 8]}, "level 2 is .*64.*32"),
        ("unet", {"mid_block_type": None}, "mid is None in the config, 0 in the weights"),
        ("unet", {"norm_num_groups": 3}, "widths 8, 16, 32 are not multiples of norm_groups 3"),
        ("vae", {"latent_channels": 16}, "latent_channels is 16 in the config, 4 in the weights"),
        ("vae", {"layers_per_block": 2}, "layers_per_block is 2 in the config, 1 in the weights"),
        ("text_encoder", {"num_hidden_layers": 12}, "layers is 12 in the config, 2 in the weights"),
        ("text_encoder_2", {"projection_dim": 13}, "projection_dim is 13 in the config, 12 in the weights"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_named(folder, part, change, message):
    edit(folder / part / "config.json", **change)
    with pytest.raises(InputError, match=f"{part}: .*{message}"):
        open_checkpoint(folder)


def test_networks_that_do_not_fit_together_are_named(tiny_folder):
    checkpoint = open_checkpoint(tiny_folder)
    for part, change, message in (
        ("unet", {"cross_attention_dim": 64}, "attends to 64 text channels, but the text encoders return 40"),
        ("text_encoder_2", {"projection_dim": 9}, "12 pooled text channels, but text_encoder_2 returns 9"),
        ("vae", {"latent_channels": 16}, "returns latents of 4 channels, but the VAE takes 16"),
    ):
        old = checkpoint.parts[part]
        parts = {**checkpoint.parts, part: replace(old, layout=replace(old.layout, **change))}
        with pytest.raises(InputError, match=message):
            _ = replace(checkpoint, parts=parts).info


def test_fp16_files_are_taken_for_16_bits_only(folder, tiny_weights):
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        half = {
            name: tensor.half() for name, tensor in load_file(folder / part / f"{stem}.safetensors").items()
        }
        save_file(half, folder / part / f"{stem}.fp16.safetensors")
    full, half = open_checkpoint(folder), open_checkpoint(folder, half=True)
    assert set(full.parts["unet"].dtypes) == set(full.parts["text_encoder"].dtypes) == {torch.float32}
    assert set(half.parts["unet"].dtypes) == set(half.parts["text_encoder"].dtypes) == {torch.float16}
    assert set(half.parts["vae"].dtypes) == {torch.float32}
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert set(open_checkpoint(folder).parts["unet"].dtypes) == {torch.float16}


def split_into_shards(folder, variant=""):
    stem = "diffusion_pytorch_model"
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"{stem}{variant}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, chosen in shards.items():
        save_file({name: tensors[name] for name in chosen}, folder / file)
    index = folder / f"{stem}.safetensors.index{variant}.json"
    index.write_text(
        json.dumps({"weight_map": {name: file for file, chosen in shards.items() for name in chosen}})
    )
    return index


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards(folder, tiny_weights, variant):
    split_into_shards(folder / "unet", variant)
    tensors = read_part(open_checkpoint(folder), "unet")
    assert tensors.keys() == tiny_weights["unet"].keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in tiny_weights["unet"].items())


def test_an_index_that_leads_elsewhere_or_nowhere_is_refused(folder):
    index = split_into_shards(folder / "unet")
    places = json.loads(index.read_text())["weight_map"]
    name, file = next(iter(places.items()))
    for changed, message in (
        (
            {**places, name: "../vae/diffusion_pytorch_model.safetensors"},
            "is not the name of a file in the same folder",
        ),
        ({**places, name: "/etc/passwd"}, "is not the name of a file in the same folder"),
        ({**places, name: 3}, "weight_map must have the file of each tensor"),
        ({**places, name: "missing.safetensors"}, "cannot read .*missing.safetensors"),
        ({**places, "strange.weight": file}, "1 tensor not in the files it lists: strange.weight"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(InputError, match=message):
            open_checkpoint(folder)


def test_pickled_weights_are_refused(folder):
    stem = folder / "unet" / "diffusion_pytorch_model"
    stem.with_suffix(".safetensors").rename(stem.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"only diffusion_pytorch_model\.bin: a pickle, which can run code"):
        open_checkpoint(folder)


def test_other_pipelines_are_refused(folder):
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(InputError, match="is a 'StableDiffusionPipeline'; only SDXL's family"):
        open_checkpoint(folder)


def test_a_missing_network_is_named(folder):
    shutil.rmtree(folder / "vae")
    checkpoint = open_checkpoint(folder)
    assert "vae" not in checkpoint.parts
    with pytest.raises(
        InputError, match="not a complete model: it has unet, text_encoder, text_encoder_2 but no vae"
    ):
        _ = checkpoint.info


def test_a_folder_without_scheduler_and_settings_gets_sdxls(folder):
    shutil.rmtree(folder / "scheduler")
    (folder / "ssd1b.json").unlink()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.scheduler == SDXL_SCHEDULER
    assert checkpoint.settings == {}


def test_settings_of_another_kind_are_named(folder):
    (folder / "ssd1b.json").write_text('{"settings": 4}')
    with pytest.raises(InputError, match=r"ssd1b\.json: settings must be an object, got 4"):
        open_checkpoint(folder)


def test_older_and_newer_spellings_of_names(folder, tiny_weights):
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
    save_file({**tensors, "embeddings.position_ids": torch.arange(77)[None]}, file)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    renamed = load_file(file)
    for new, before in old:
        renamed = {name.replace(new, before): tensor for name, tensor in renamed.items()}
    save_file(renamed, file)
    checkpoint = open_checkpoint(folder)
    for part in ("text_encoder", "vae"):
        assert read_part(checkpoint, part).keys() == tiny_weights[part].keys()


def test_a_tensor_in_both_spellings_is_refused(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = "encoder.mid_block.attentions.0.to_q.weight"
    save_file({**tensors, name.replace("to_q", "query"): tensors[name].clone()}, file)
    with pytest.raises(InputError, match=f"duplicate tensor {name}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_the_folder_of_one_network(tiny_folder, tiny_weights, part):
    checkpoint = open_checkpoint(tiny_folder / part)
    assert checkpoint.format == f"diffusers {part} folder"
    assert list(checkpoint.parts) == [part]
    assert checkpoint.size == {"unet": 16 * 8, "vae": 1024}[part]
    assert checkpoint.parts[part].layout == getattr(TINY, part)


def test_the_folder_of_another_network_is_refused(tiny_folder):
    with pytest.raises(InputError, match="only a complete model, or a UNet2DConditionModel or AutoencoderKL"):
        open_checkpoint(tiny_folder / "text_encoder")


def test_places_without_a_model(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(InputError, match="neither model_index"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(InputError, match=r"did you mean .*a\.safetensors\?"):
        open_checkpoint(tmp_path)


def test_names_and_families():
    def checkpoint(unet):
        return Checkpoint(path=Path("x"), format="x", parts={"unet": Part(layout=unet, tensors={})})

    assert (checkpoint(SDXL).name, checkpoint(SDXL).family) == ("sdxl", "sdxl")
    lcm = checkpoint(replace(SSD_1B, guidance_embed_dim=256, in_channels=9))
    assert (lcm.name, lcm.family) == ("custom", "ssd-1b")
    assert "embeds the guidance scale" in lcm.notes[0]
    assert "takes 9 channels" in lcm.notes[1]
    assert checkpoint(replace(SSD_1B, guidance_embed_dim=256)).name == "ssd-1b"
    other = checkpoint(replace(SSD_1B, mid=None))
    assert (other.name, other.family) == ("custom", None)
    assert Checkpoint(path=Path("x"), format="x", parts={}).name == "custom"
    assert ModelInfo(layout=TINY).scheduler == SDXL_SCHEDULER
