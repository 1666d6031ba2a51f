"""A ControlNet in training is diffusers': loss and gradients, and its folder opened there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from control_training import control_in_training
from ssd1b.finetune.controlnet import write_controlnet
from ssd1b.finetune.networks import Networks
from ssd1b.finetune.prior import loss_terms
from ssd1b.finetune.settings import make_settings
from ssd1b.layouts import KOALA_1B, SDXL, SSD_1B, VEGA, ModelLayout, UNetLayout
from ssd1b.model import Model
from ssd1b.models.text import Conditioning
from ssd1b.training.batches import LatentBatch
from ssd1b.training.objective import Objective
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.configs import controlnet_config, unet_config
from ssd1b.weights.writing import save_folder
from tiny import DRAWABLE, inputs, random_weights, tiny

SETTINGS = make_settings(None, {"method": "controlnet", "weighting": "constant"}, size=64)
OBJECTIVE = Objective(text=None, device="cpu", dtype=torch.float32, weighting="constant")


def few(depth: UNetLayout) -> UNetLayout:
    """The blocks of a layout, with at most two transformer blocks each."""
    levels = tuple(
        replace(each, down=tuple(min(d, 2) for d in each.down), up=tuple(min(d, 2) for d in each.up))
        for each in depth.levels
    )
    return replace(depth, levels=levels, mid=depth.mid and min(depth.mid, 2))


LAYOUTS = {name: few(tiny(each).unet) for name, each in
           {"sdxl": SDXL, "ssd-1b": SSD_1B, "vega": VEGA, "koala-1b": KOALA_1B}.items()}  # fmt: skip


def batch(layout: UNetLayout) -> LatentBatch:
    given = inputs(layout, 8, 8)
    torch.manual_seed(1)
    controls = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    text = Conditioning(given.prompt_embeds, given.pooled_prompt_embeds)
    return LatentBatch(given.latents, text, given.time_ids, torch.ones(2).bool(), controls=controls)


def oracle_of(networks: Networks) -> tuple[UNet2DConditionModel, ControlNetModel]:
    control = networks.controlnet
    assert control is not None
    unet = UNet2DConditionModel.from_config(unet_config(networks.unet.layout, 64)).requires_grad_(False)
    unet.load_state_dict(networks.unet.state_dict())
    theirs = ControlNetModel.from_config(controlnet_config(control.control_layout))
    theirs.load_state_dict(control.state_dict())
    return unet, theirs


def predicted(unet: UNet2DConditionModel, control: ControlNetModel, given: tuple, controls: Tensor) -> Tensor:
    latents, timesteps, embeds, pooled, time_ids = given
    common = {
        "encoder_hidden_states": embeds,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids},
    }
    down, mid = control(
        latents, timesteps, controlnet_cond=controls.float() / 255, return_dict=False, **common
    )
    return unet(
        latents, timesteps, down_block_additional_residuals=down, mid_block_additional_residual=mid, **common
    ).sample  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_loss_and_gradients_are_those_of_diffusers(name: str) -> None:
    """As in diffusers' ``train_controlnet_sdxl.py``, with the same noise and timesteps."""
    layout = LAYOUTS[name]
    networks, data = control_in_training(layout, SETTINGS), batch(layout)
    unet, theirs = oracle_of(networks)
    torch.manual_seed(2)
    predict = networks.predictor(data.controls, torch.float32)
    loss = loss_terms(OBJECTIVE, predict, data, None, 1.0)["loss"]
    loss.backward()

    torch.manual_seed(2)
    example = OBJECTIVE(data)
    assert data.controls is not None
    expected = F.mse_loss(predicted(unet, theirs, example.inputs, data.controls), example.target)
    expected.backward()
    assert (loss - expected).abs() <= 1e-5 * expected
    control = networks.controlnet
    assert control is not None
    gradients = dict(theirs.named_parameters())
    assert gradients.keys() == dict(control.named_parameters()).keys()
    for key, each in control.named_parameters():
        ours, other = each.grad, gradients[key].grad
        assert ours is not None and other is not None and other.any(), key
        assert (ours - other).abs().max() <= 1e-5 * other.abs().max(), key


def test_diffusers_opens_the_folder(tmp_path: Path) -> None:
    layout: ModelLayout = replace(DRAWABLE, unet=LAYOUTS["ssd-1b"])
    save_folder(tmp_path / "model", ModelInfo(layout=layout), random_weights(layout))
    networks, data = control_in_training(layout.unet, SETTINGS), batch(layout.unet)
    assert networks.controlnet is not None and data.controls is not None
    model = Model.find(str(tmp_path / "model"))
    write_controlnet(tmp_path / "controlnet", networks.controlnet, model, {"x": "y"}, overwrite=False)
    unet, _ = oracle_of(networks)
    opened = ControlNetModel.from_pretrained(tmp_path / "controlnet", local_files_only=True)
    given = inputs(layout.unet, 8, 8)
    with torch.no_grad():
        expected = predicted(unet, opened, given, data.controls)
        found = networks.predictor(data.controls, torch.float32)(*given)
        without = networks.unet(*given)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    assert (without - expected).abs().max() > 1e-3
