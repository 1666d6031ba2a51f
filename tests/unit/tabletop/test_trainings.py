"""The miniature's trainings, a few steps of each: what must change changes, what must not does not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssd1b.errors import InputError
from ssd1b.layouts import MINI_SDXL, VAE_MINI
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.models.vision import IMAGE_ENCODER
from ssd1b.tabletop import assemble, cache, train_unet, train_vae
from ssd1b.training import loop
from ssd1b.weights import hub
from ssd1b.weights.loading import open_checkpoint, read_part


@pytest.fixture(autouse=True)
def read_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loop, "_read_ahead", lambda batches, start, stop: (batches[step] for step in range(start, stop))
    )


FEW = {"steps": 2, "decay_steps": 0, "warmup_steps": 0}


def test_normalised_latents_decode_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    vae = train_vae.initialised(VAE(VAE_MINI)).requires_grad_(False)
    pixels = next(train_vae._validation(4, 4))
    before = vae.decode(vae.encode(pixels).mean)
    train_vae.normalise_latents(vae, pictures=64)
    torch.testing.assert_close(vae.decode(vae.encode(pixels).mean), before, rtol=1e-3, atol=1e-3)
    means = torch.cat([vae.encode(batch).mean for batch in train_vae._validation(64)])
    torch.testing.assert_close(means.std(dim=(0, 2, 3)), torch.ones(4))
    torch.testing.assert_close(means.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)


def test_steadying_the_decoder_leaves_the_encoder_alone(tmp_path: Path) -> None:
    vae = train_vae.initialised(VAE(VAE_MINI))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    after = train_vae.steady_decoder(
        tmp_path, vae, settings=replace(train_vae.DECODER_SETTINGS, **FEW)
    ).state_dict()
    changed = {name for name in before if not after[name].equal(before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize(("part", "network"), [("vae", VAE), ("unet", UNet)])
def test_a_models_weights_are_gone_on_with_in_32_bits(part: str, network: type[VAE] | type[UNet]) -> None:
    model = hub.resolve("mini-sdxl", offline=True).path
    taken = assemble._taken(network(getattr(MINI_SDXL, part)), model, part)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in taken.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_blocks_are_compiled_once_a_width_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(MINI_SDXL.unet)
    monkeypatch.setattr(train_unet.shutil, "which", lambda name: None)
    train_unet._quicken(unet, torch.float32)
    assert all(module._compiled_call_impl is None for module in unet.modules())
    monkeypatch.setattr(train_unet.shutil, "which", lambda name: "/usr/bin/g++")
    train_unet._quicken(unet, torch.float32)
    compiled = [module for module in unet.modules() if module._compiled_call_impl is not None]
    assert len(compiled) == unet.layout.transformer_blocks


def test_a_unet_is_gone_on_with_beside_its_own_models_other_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_unet, "PICTURES", 8)
    monkeypatch.setattr(train_unet.shutil, "which", lambda name: None)
    monkeypatch.setattr(cache, "SHARD", 8)
    model = hub.resolve("mini-sdxl", offline=True).path
    made = open_checkpoint(assemble.train_part("unet", tmp_path, start=model, steps=1, batch_size=4))
    shipped = open_checkpoint(model)
    assert made.tokenizers.keys() == shipped.tokenizers.keys()
    for part in ("vae", "text_encoder", "text_encoder_2"):
        ours, theirs = (read_part(each, part, dtype=torch.float16) for each in (made, shipped))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (read_part(each, "unet", dtype=torch.float16) for each in (made, shipped))
    assert any(not torch.equal(ours[name], theirs[name]) for name in theirs), "the UNet has learned"
    image_encoder = Path(IMAGE_ENCODER, "model.safetensors")
    assert (made.path / image_encoder).read_bytes() == (model / image_encoder).read_bytes()


def test_without_a_model_to_go_on_with_the_other_parts_come_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train 'vae' first"):
        assemble.train_part("unet", tmp_path)
