"""Weights into modules."""

import random
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ssd1b.errors import InputError
from ssd1b.models.unet import UNet
from ssd1b.weights import loading
from ssd1b.weights.loading import load_component, read_part
from ssd1b.weights.opening import open_checkpoint
from tiny import TINY

from .cases import modules


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def unet_file(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def load_unet(folder, dtype=torch.float32):
    with torch.device("meta"):
        unet = UNet(TINY.unet)
    load_component(unet, open_checkpoint(folder), "unet", dtype=dtype)
    return unet


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_modules_get_their_weights_in_the_wanted_format(tiny_folder, tiny_weights, dtype):
    checkpoint = open_checkpoint(tiny_folder)
    for part, module in modules(TINY).items():
        load_component(module, checkpoint, part, dtype=dtype)
        for name, tensor in module.state_dict().items():
            assert tensor.dtype == dtype and not tensor.is_meta
            assert torch.equal(tensor, tiny_weights[part][name].to(dtype)), name
        assert all(isinstance(parameter, nn.Parameter) for parameter in module.parameters())


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_is_whole_with_what_files_hold(tiny_folder, part):
    """Published files may hold CLIP's position numbers or not; ours needs none."""
    text = modules(TINY)[part]
    load_component(text, open_checkpoint(tiny_folder), part, dtype=torch.float32)
    assert not dict(text.named_buffers())
    ids = torch.randint(0, 1000, (1, 77))
    real = modules(TINY, device="cpu")[part]
    real.load_state_dict(text.state_dict())
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(text(ids), real(ids), strict=True))


def test_nothing_is_copied_in_the_files_own_format(folder):
    """The parameters are views of the mapped file, and writing to them does not change it."""
    before = unet_file(folder).read_bytes()
    unet = load_unet(folder)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(1)
    assert unet_file(folder).read_bytes() == before


def test_missing_unknown_and_misshaped_tensors_are_named_before_anything_is_read(folder, monkeypatch):
    tensors = load_file(unet_file(folder))
    tensors["mid_block.resnets.0.conv1.wieght"] = tensors.pop("mid_block.resnets.0.conv1.weight")
    tensors["mid_block.resnets.0.conv2.bias"] = torch.zeros(3)
    save_file(tensors, unet_file(folder))
    checkpoint = open_checkpoint(folder)
    monkeypatch.setattr(loading, "open_file", lambda path: pytest.fail("a file was opened"))
    with pytest.raises(InputError) as error:
        load_component(modules(TINY)["unet"], checkpoint, "unet", dtype=torch.float32)
    assert str(error.value) == (
        f"{folder}: unet: 1 missing tensor: mid_block.resnets.0.conv1.weight "
        "(is mid_block.resnets.0.conv1.wieght meant for the first?); "
        "1 unknown tensor: mid_block.resnets.0.conv1.wieght; "
        "1 tensor of another shape: mid_block.resnets.0.conv2.bias [3] instead of [32]"
    )


def test_a_gap_in_the_numbering_is_missing_and_the_rest_unknown(folder):
    tensors = load_file(unet_file(folder))
    gap = "up_blocks.0.attentions.2.transformer_blocks.4."
    save_file({n: t for n, t in tensors.items() if not n.startswith(gap)}, unet_file(folder))
    with pytest.raises(InputError, match=r"level 2 is .*'up': \(4, 4, 10\).*'up': \(4, 4, 4\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(folder, value):
    tensors = load_file(unet_file(folder))
    bad = ["conv_in.weight", "mid_block.resnets.0.norm1.bias"]
    for name in bad:
        tensors[name].view(-1)[-1] = value
    save_file(tensors, unet_file(folder))
    with pytest.raises(InputError, match=f"unet: NaN or infinity in 2 tensors: {', '.join(bad)}"):
        load_unet(folder, torch.bfloat16)
    # Weights that stay in the mapped file are not read before they are used.
    assert loading.broken_tensors(load_unet(folder)) == bad


def test_numbers_that_do_not_fit_the_wanted_format_are_named(folder):
    tensors = load_file(unet_file(folder))
    tensors["conv_in.weight"][0, 0, 0, 0] = 1e5
    save_file(tensors, unet_file(folder))
    with pytest.raises(InputError, match=r"1 tensor too large for torch\.float16: conv_in\.weight"):
        load_unet(folder, torch.float16)
    load_unet(folder, torch.bfloat16)


@pytest.mark.parametrize(
    ("source", "target"), [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)]
)
def test_every_16_bit_number_is_cast_as_torch_casts_it(source, target):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(source)
    numbers = numbers.repeat(5).reshape(5, 2**16).T  # more than a piece, and not in one piece
    cast = loading.cast_weight(numbers, target)
    assert cast.dtype == target and cast.shape == numbers.shape
    torch.testing.assert_close(cast, numbers.to(target), rtol=0, atol=0, equal_nan=True)


def test_a_missing_network_is_named(tiny_folder):
    checkpoint = open_checkpoint(tiny_folder / "vae")
    with pytest.raises(InputError, match="it has no unet, only vae"):
        load_component(modules(TINY)["unet"], checkpoint, "unet", dtype=torch.float32)


def test_a_file_that_goes_or_shrinks_between_looking_and_loading_is_named(folder):
    checkpoint = open_checkpoint(folder)
    content = unet_file(folder).read_bytes()
    unet_file(folder).unlink()
    with pytest.raises(InputError, match="cannot read"):
        read_part(checkpoint, "unet")
    unet_file(folder).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged"):
        read_part(checkpoint, "unet")
    for other in ({"conv_in.bias": torch.zeros(3)}, {}):
        save_file(other, unet_file(folder))
        with pytest.raises(InputError, match="changed since it was opened"):
            read_part(checkpoint, "unet")


def test_damage_anywhere_gives_weights_or_a_sentence(folder):
    """Flipped bits, cuts, insertions, in header and data alike: never another exception."""
    content = unet_file(folder).read_bytes()
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    chance = random.Random(0)
    outcomes = {"loaded": 0, "refused": 0}
    with torch.device("meta"):
        unet = UNet(TINY.unet)
    for trial in range(60):
        damaged = bytearray(content)
        place = chance.randrange(header_end if trial % 3 else len(content))
        match trial % 4:
            case 0:
                damaged[place] ^= 1 << chance.randrange(8)
            case 1:
                del damaged[place : place + chance.randrange(1, 9)]
            case 2:
                damaged[place:place] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                damaged[place : place + 4] = chance.randbytes(4)
        unet_file(folder).write_bytes(damaged)
        try:
            load_component(unet, open_checkpoint(folder / "unet"), "unet", dtype=torch.float32)
        except InputError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert not any(parameter.is_meta for parameter in unet.parameters())
            outcomes["loaded"] += 1
    assert outcomes["refused"] > 20 and outcomes["loaded"] > 5, outcomes
