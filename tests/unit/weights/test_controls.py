"""Files of networks that follow a picture: every spelling of theirs is read, every other file is named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssd1b.errors import InputError
from ssd1b.layouts import SDXL, SSD_1B, VEGA, ControlNetLayout, T2IAdapterLayout, UNetLayout, encoder_of
from ssd1b.models.controlnet import ControlNet
from ssd1b.models.t2i_adapter import T2IAdapter
from ssd1b.weights.controls import CONTROLNET, T2I_ADAPTER, open_control
from ssd1b.weights.loading import read_part
from tiny import LAYOUTS

UNET = LAYOUTS["ssd-1b"]
HINT = (4, 6, 8, 8)


def controlnet(unet: UNetLayout, *, transformers: bool = True) -> tuple[ControlNetLayout, dict[str, Tensor]]:
    torch.manual_seed(0)
    layout = ControlNetLayout(encoder=encoder_of(unet, transformers=transformers), hint=HINT)
    return layout, ControlNet(layout).state_dict()


def original(state: dict[str, Tensor], unet: UNetLayout) -> dict[str, Tensor]:
    """Spell a ControlNet as ControlNet's own code does (``cldm/cldm.py``), by hand."""
    hint = {"conv_in": 0, **{f"blocks.{i}": 2 * (i + 1) for i in range(6)}, "conv_out": 14}
    resnet = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    blocks, index = {}, 1
    for i, level in enumerate(unet.levels):
        for j in range(len(level.down)):
            blocks |= {
                f"down_blocks.{i}.resnets.{j}.{a}": f"input_blocks.{index}.0.{b}" for a, b in resnet.items()
            }
            blocks[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{index}.1"
            index += 1
        blocks[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
        index += 1
    for j, place in ((0, 0), (1, 2)):
        blocks |= {f"mid_block.resnets.{j}.{a}": f"middle_block.{place}.{b}" for a, b in resnet.items()}
    names = {
        **{f"controlnet_cond_embedding.{a}": f"input_hint_block.{b}" for a, b in hint.items()}, **blocks,
        "mid_block.attentions.0": "middle_block.1", "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "controlnet_mid_block": "middle_block_out.0",
        **{f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(9)},
    }  # fmt: skip
    found = {}
    for name, tensor in state.items():
        head = max((each for each in names if name.startswith(f"{each}.")), key=len)
        found[f"control_model.{names[head]}{name.removeprefix(head)}"] = tensor
    return found


def read(path: Path, unet: UNetLayout, part: str) -> dict[str, Tensor]:
    return read_part(open_control(path, unet), part)


@pytest.mark.parametrize("name", ["sdxl", "ssd-1b", "vega"])
def test_both_spellings_of_a_controlnet(tmp_path: Path, name: str) -> None:
    unet = LAYOUTS[name]
    layout, state = controlnet(unet)
    save_file(state, tmp_path / "ours.safetensors")
    save_file(original(state, unet), tmp_path / "original.safetensors")
    save_file({f"module.{key}": each for key, each in state.items()}, tmp_path / "wrapped.safetensors")
    for file in ("ours", "original", "wrapped"):
        found = open_control(tmp_path / f"{file}.safetensors", unet)
        assert found.parts[CONTROLNET].layout == layout
        tensors = read(tmp_path / f"{file}.safetensors", unet, CONTROLNET)
        assert tensors.keys() == state.keys() and all(tensors[key].equal(each) for key, each in state.items())


def test_one_without_transformers_fits_every_unet_of_its_widths(tmp_path: Path) -> None:
    """It has no text's width; SDXL's has another middle than SSD-1B's, which is the network's own matter."""
    layout, state = controlnet(UNET, transformers=False)
    save_file(state, tmp_path / "small.safetensors")
    save_file(original(state, UNET), tmp_path / "original.safetensors")
    for file in ("small", "original"):
        for unet in (UNET, LAYOUTS["sdxl"], replace(UNET, in_channels=9, guidance_embed_dim=8)):
            assert open_control(tmp_path / f"{file}.safetensors", unet).parts[CONTROLNET].layout == layout


@pytest.mark.parametrize("name", ["adapter.", ""])
def test_t2i_adapters(tmp_path: Path, name: str) -> None:
    layout = T2IAdapterLayout(channels=(32, 64, 128, 128), depth=1, picture_channels=1)
    state = T2IAdapter(layout).state_dict()
    written = {key.replace("adapter.", name): each for key, each in state.items()}
    save_file(written, tmp_path / "t2i.safetensors")
    found = open_control(tmp_path / "t2i.safetensors", UNET)
    assert found.parts[T2I_ADAPTER].layout == layout
    assert read(tmp_path / "t2i.safetensors", UNET, T2I_ADAPTER).keys() == state.keys()


def test_published_sizes() -> None:
    """The sizes of diffusers' modules for SDXL, its ControlNet and T2I-Adapter."""

    def parameters(network: torch.nn.Module) -> int:
        return sum(each.numel() for each in network.parameters())

    with torch.device("meta"):
        full = parameters(ControlNet(ControlNetLayout(encoder=encoder_of(SDXL))))
        own = parameters(ControlNet(ControlNetLayout(encoder=encoder_of(SSD_1B))))
        small = parameters(ControlNet(ControlNetLayout(encoder=encoder_of(VEGA, transformers=False))))
        adapter = parameters(T2IAdapter(T2IAdapterLayout()))
    assert (full, own, small, adapter) == (1_251_014_160, 451_965_200, 125_690_640, 79_028_160)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_controlnet", "a Control-LoRA"),
        ("task_embedding", "a ControlNet-Union"),
        ("lllite_unet_input_blocks_4_1.down.0.weight", "a ControlNet-LLLite"),
        ("controlnet_x_embedder.weight", "a ControlNet for Flux or Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "a Flux model"),
        ("lora_unet_x.lora_down.weight", "a LoRA: use --lora$"),
        ("image_proj.proj.weight", "an IP-Adapter"),
        ("anything", "it contains anything"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, message: str) -> None:
    save_file({name: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=rf"no ControlNet or T2I-Adapter for SDXL's family: {message}"):
        open_control(tmp_path / "x.safetensors", UNET)


def test_other_families_and_widths_are_named(tmp_path: Path) -> None:
    _, state = controlnet(UNET)
    path = tmp_path / "x.safetensors"

    def said(tensors: dict[str, Tensor], unet: UNetLayout = UNET) -> str:
        save_file(tensors, path)
        with pytest.raises(InputError) as error:
            open_control(path, unet)
        return str(error.value).removeprefix(f"{path}: ")

    old = {key: each for key, each in state.items() if "add_embedding" not in key}
    text = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert said({**old, text: torch.ones(64, 768)}) == (
        "a ControlNet for a Stable Diffusion 1 model; only those for SDXL's family are supported"
    )
    assert said(old).startswith("a ControlNet for a model of another family")
    assert said(state, SDXL) == "its levels have 32, 64, 128 channels, the model's 320, 640, 1280"
    assert "other numbers of resnets" in said(state, LAYOUTS["koala-1b"])
    assert said(state, replace(UNET, cross_attention_dim=52)) == "it takes 48 text channels, the model has 52"
    assert said(state, replace(UNET, pooled_dim=25)) == "it takes 24 pooled text channels, the model has 25"
    grey = {**state, "controlnet_cond_embedding.conv_in.weight": torch.ones(4, 1, 3, 3)}
    assert said(grey) == "it takes 1 colours, the model has 3"
    adapter = T2IAdapter(T2IAdapterLayout(channels=(8, 16, 32, 32), depth=1)).state_dict()
    assert said(adapter) == "its features have 8, 16, 32, 32 channels, the model needs 32, 64, 128, 128"
    odd = T2IAdapter(T2IAdapterLayout(channels=(32, 64, 128, 128), depth=1, picture_channels=2)).state_dict()
    assert "it reads 512 channels, not 256 or 768" in said(odd)


def test_what_is_missing_or_damaged_is_told_before_anything_is_built(tmp_path: Path) -> None:
    _, state = controlnet(UNET)
    path = tmp_path / "x.safetensors"
    for key in ("controlnet_cond_embedding.conv_in.weight", "add_embedding.linear_1.weight"):
        save_file({name: each for name, each in state.items() if name != key}, path)
        with pytest.raises(InputError, match=key):
            open_control(path, UNET)
    path.write_bytes(b"pickle")
    with pytest.raises(InputError, match="x"):
        open_control(path, UNET)
