"""The miniature's trainings, a few steps of each: what must change changes, what must not does not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssd1b.edges import canny
from ssd1b.errors import InputError
from ssd1b.layouts import MINI_SDXL, SDXL_MINI, SSD_1B_MINI, VAE_MINI
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.models.vision import IMAGE_ENCODER
from ssd1b.saving import renewing
from ssd1b.tabletop.miniature import (
    assemble,
    cache,
    train_clip,
    train_control,
    train_judge,
    train_unet,
    train_vae,
)
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.scenes import PLAIN, WORLDS, scene
from ssd1b.tabletop.world.views import SIZE, photograph, view
from ssd1b.training import kernels
from ssd1b.weights import hub
from ssd1b.weights.controls import open_control
from ssd1b.weights.loading import read_part
from ssd1b.weights.opening import open_checkpoint

pytestmark = pytest.mark.usefixtures("read_in_process")

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
    after = train_vae.train_decoder(
        tmp_path, vae, settings=replace(train_vae.DECODER_SETTINGS, **FEW)
    ).state_dict()
    changed = {name for name in before if not after[name].equal(before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_a_models_weights_are_gone_on_with_in_32_bits(part: str) -> None:
    taken = assemble._read_network(hub.resolve("mini-sdxl", offline=True).path, part)
    assert taken.training and all(p.requires_grad and p.dtype == torch.float32 for p in taken.parameters())


def test_a_network_of_another_layout_is_not_gone_on_with() -> None:
    with pytest.raises(InputError, match="its unet has another layout"):
        assemble._read_network(hub.resolve("mini-ssd-1b", offline=True).path, "unet")


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_unet, "PICTURES", 8)
    monkeypatch.setattr(train_clip, "PICTURES", 32)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    monkeypatch.setattr(cache, "SHARD", 8)


def changed(part: str, one: Path, other: Path) -> bool:
    first, second = (read_part(open_checkpoint(each), part, dtype=torch.float16) for each in (one, other))
    assert first.keys() == second.keys()
    return any(not torch.equal(first[name], second[name]) for name in first)


def test_a_unet_is_gone_on_with_beside_its_own_models_other_parts(tmp_path: Path, few_pictures: None) -> None:
    model = hub.resolve("mini-sdxl", offline=True).path
    made = assemble.train_part("unet", tmp_path, start=model, steps=1, batch_size=4, seed=6)
    assert [*tmp_path.rglob("plain-6")], "pictures of the seed that was asked for"
    assert open_checkpoint(made).tokenizers.keys() == open_checkpoint(model).tokenizers.keys()
    learned = {part: changed(part, made, model) for part in ("unet", "text_encoder", "text_encoder_2", "vae")}
    assert learned == {"unet": True, "text_encoder": False, "text_encoder_2": False, "vae": False}
    weights = Path(IMAGE_ENCODER, "model.safetensors")
    assert (made / weights).read_bytes() == (model / weights).read_bytes()


def test_the_image_encoder_learns_alone(tmp_path: Path, few_pictures: None) -> None:
    model = hub.resolve("mini-sdxl", offline=True).path
    with pytest.raises(InputError, match="a folder has that name"):
        shutil.copytree(model, tmp_path / "mine/model")
        assemble.train_part("image-encoder", tmp_path / "mine", steps=1, batch_size=32)
    with renewing(tmp_path / "model") as aside:
        shutil.copytree(model, aside)
    assemble.train_part("image-encoder", tmp_path, steps=1, batch_size=32)
    weights = Path(IMAGE_ENCODER, "model.safetensors")
    assert (tmp_path / "model" / weights).read_bytes() != (model / weights).read_bytes()
    parts = ("unet", "text_encoder", "text_encoder_2", "vae")
    assert not any(changed(part, tmp_path / "model", model) for part in parts)
    with pytest.raises(InputError, match="train 'unet' first"):
        assemble.train_part("image-encoder", tmp_path / "other")


def test_a_controlnet_learns_alone(
    tmp_path: Path, few_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_control, "PICTURES", 8)
    made = assemble.train_part("control", tmp_path, steps=2, batch_size=4)
    assert made == tmp_path / "controlnet" and json.loads((made / "config.json").read_text())
    file = made / "diffusion_pytorch_model.safetensors"
    for unet in (SDXL_MINI, SSD_1B_MINI):
        found = open_control(file, unet)
        assert found.parts["controlnet"].dtypes.keys() == {torch.bfloat16}
    tensors = read_part(found, "controlnet", dtype=torch.float32)
    model = hub.resolve("mini-ssd-1b", offline=True).path
    before = read_part(open_checkpoint(model), "unet", dtype=torch.float32)
    name = "down_blocks.2.resnets.1.conv1.weight"
    distance = (tensors[name] - before[name]).norm() / before[name].norm()
    assert 0 < distance < 0.3, "it is the UNet's, a few steps further"
    outputs = [each for name, each in tensors.items() if name.startswith("controlnet_down_blocks")]
    assert any(each.any() for each in outputs)


def test_edges_are_those_of_the_batchs_images(tmp_path: Path) -> None:
    text = assemble._companions(tmp_path, hub.resolve("mini-sdxl", offline=True).path).text
    latents = cache.Shards(tmp_path / "l", 1024, lambda indices: np.zeros((1024, 1), np.float16), label="")
    packed = np.repeat(train_control._packed(0, PLAIN, range(8)), 128, axis=0)
    edges = cache.Shards(tmp_path / "e", 1024, lambda indices: packed, label="")
    captioned = train_unet.CaptionedLatents(latents=latents, text=text, batch_size=3, seed=0, world=PLAIN)
    batch = train_control.Edges(captioned=captioned, edges=edges)[0]
    indices, *_ = captioned.scenes_at(0)
    assert batch.controls is not None and batch.controls.shape == (3, 1, SIZE, SIZE)
    for found, index in zip(batch.controls[:, 0].numpy(), indices, strict=True):
        wanted = canny(photograph(scene(0, int(index) // 128), view(0, int(index) // 128)))
        assert np.array_equal(found, wanted)


def test_what_stands_where_is_asked_of_uncut_pictures_alone(tmp_path: Path) -> None:
    text = assemble._companions(tmp_path, hub.resolve("mini-sdxl", offline=True).path).text
    latents = cache.Shards(tmp_path, 1024, lambda indices: np.zeros((1024, 4, 16, 16), np.float16), label="")
    data = train_unet.CaptionedLatents(latents=latents, text=text, batch_size=64, seed=0, world=PLAIN)
    batch = train_unet.Scenes(captioned=data)[0]
    asked = (batch.answers["shape"] != train_judge.ABSENT).sum(dim=(1, 2))
    cut = batch.captioned.time_ids[:, 0] != batch.captioned.time_ids[:, 1]
    assert 0 < cut.sum() < 64 and not asked[cut].any()
    assert set(asked[~cut].tolist()) <= {0, 1, 2} and asked[~cut].sum() > 40


def test_a_batch_of_which_nothing_is_asked_is_learned_all_the_same() -> None:
    answers = sum(map(len, train_judge.SOLID_ANSWERS.values()))
    nothing = {name: torch.full((1, 16, 16), train_judge.ABSENT) for name in train_judge.SOLID_ANSWERS}
    read = torch.randn(1, answers, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not any(train_unet._reading(read, nothing).values())
    asked = {**nothing, "shape": nothing["shape"].clone()}
    asked["shape"][0, 3, 4], asked["shape"][0, 9, 9] = 2, 5
    told = read[0, :6].log_softmax(0)
    expected = -(told[2, 3, 4] + told[5, 9, 9]) / 2
    torch.testing.assert_close(train_unet._reading(read, asked)["shape"], expected)


def test_the_reader_hears_the_caption(tmp_path: Path) -> None:
    text = assemble._companions(tmp_path, hub.resolve("mini-sdxl", offline=True).path).text
    learner = train_unet.JointModel(train_unet.initialised(UNet(MINI_SDXL.unet)), text)
    with torch.no_grad():  # at the start no branch of the network says anything
        for name, parameter in learner.unet.named_parameters():
            if name.endswith("proj_out.weight"):
                parameter.normal_(std=0.1)
    ids, ids_2 = (tokens.ids[:, 0] for tokens in text.tokenize(["a red cube", "a red cone"]))
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    time_ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2)

    def read(kept: list[float]) -> torch.Tensor:
        return learner(latents, torch.full((2,), 500.0), ids, ids_2, torch.tensor(kept), time_ids)[1]

    heard, silent = read([1, 1]), read([0, 0])
    assert heard.shape == (2, sum(map(len, train_judge.SOLID_ANSWERS.values())), 16, 16)
    assert (heard[0] - heard[1]).abs().max() > 1e-4
    torch.testing.assert_close(silent[0], silent[1])


def test_text_encoders_are_gone_on_with_and_taken_by_the_unet_of_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_clip, "PICTURES", 32)
    monkeypatch.setattr(cache, "SHARD", 32)
    model = hub.resolve("mini-sdxl", offline=True).path
    assemble.train_part("clip", tmp_path, start=model, steps=1, batch_size=32)
    before, after = assemble._read_trio(model), assemble._companions(tmp_path, model)
    for name, tensor in after.text.encoder_2.state_dict().items():
        moved = (tensor - before.text_encoder_2.state_dict()[name]).abs().max()
        assert moved < 0.01, f"{name} is not the model's, a step further"
    assert any(
        not torch.equal(tensor, before.text_encoder_2.state_dict()[name])
        for name, tensor in after.text.encoder_2.state_dict().items()
    )


def test_pictures_of_the_same_colours_stand_in_a_batch_together(tmp_path: Path) -> None:
    count, together = 2048, train_clip.LOOK_ALIKES
    # Each picture is its own number, so that the batch tells which ones it took.
    pictures = cache.Shards(tmp_path, count, lambda indices: np.array(indices)[:, None, None, None], label="")
    text = assemble._companions(tmp_path, hub.resolve("mini-sdxl", offline=True).path).text
    data = train_clip.CaptionedPictures(pictures=pictures, tokenize=text, batch_size=64, seed=0, world=PLAIN)
    batch = data[3]
    numbers = batch.pixels.flatten().tolist()
    assert len(set(numbers)) == len(batch.ids) == 64
    scenes = [scene(0, number) for number in numbers]
    for start in range(0, 64, together):
        group = scenes[start : start + together]
        assert len({each.background for each in group}) <= 2, "a group may lie across two backgrounds"
    # 144 or more kinds of colours, of which a random batch of 64 holds some 60.
    assert len({train_clip._colors(each) for each in scenes}) < 40
    assert batch.twins.diagonal().all()
    assert batch.twins.equal(batch.twins.T)
    assert batch.twins[0].tolist() == [full_caption(each) == full_caption(scenes[0]) for each in scenes]


def test_without_a_model_to_go_on_with_the_other_parts_come_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train 'vae' first"):
        assemble.train_part("unet", tmp_path)


def test_a_world_or_part_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'rich'"):
        assemble.train_part("vae", tmp_path, world="rihc")
    with pytest.raises(InputError, match="did you mean 'unet'"):
        assemble.train_part("unett", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", assemble.SETTINGS)
@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 0}, {"batch_size": -4}, {"batch_size": 99_999_999_999}, {"batch_size": 10**5000},
        {"steps": 0}, {"steps": -1}, {"steps": 10**12}, {"seed": -5}, {"seed": 2**64},
    ],
    ids=lambda given: str(given)[:30] if max(given.values()) < 10**20 else "10^5000",
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused_before_anything_is_made(
    tmp_path: Path, part: str, given: dict[str, int]
) -> None:
    with pytest.raises(InputError, match=f"{next(iter(given))}.* it must be"):
        assemble.train_part(part, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "size"), [("vae", 2), ("vae", 6), ("clip", 2), ("clip", 24), ("image-encoder", 8), ("judge", 1)]
)
def test_a_batch_must_hold_whole_groups(tmp_path: Path, part: str, size: int) -> None:
    with pytest.raises(InputError, match=rf"batch_size of {part} is {size}: it must be .* from \d+ to 4096"):
        assemble.train_part(part, tmp_path, batch_size=size)


@pytest.mark.parametrize("part", assemble.BATCH_SIZES)
def test_the_smallest_batch_can_be_made(tmp_path: Path, part: str, few_pictures: None) -> None:
    (allowed,) = assemble.BATCH_SIZES[part].__metadata__
    least = allowed.low
    if part == "vae":
        assert len(train_vae.Crops(batch_size=least)[0]) == least
    elif part == "judge":
        assert len(judged(batch_size=least)[0]) == least


def judged(**what: Any) -> list[torch.Tensor]:
    """Pixels of the judge's first batch."""
    vae = assemble._vae(Path(), hub.resolve("mini-sdxl", offline=True).path)
    return [train_judge.Renders(vae=vae, **what)[0].pixels]


@pytest.mark.parametrize("data", [judged, train_vae.Crops])
def test_a_training_sees_the_world_it_is_given(data: Callable[..., Any]) -> None:
    plain, rich = (data(batch_size=4, seed=0, world=WORLDS[world])[0] for world in ("plain", "rich"))
    assert plain.shape == rich.shape
    assert not plain.equal(rich)
