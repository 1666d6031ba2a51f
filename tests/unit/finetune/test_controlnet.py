"""A ControlNet beside a frozen UNet: gradients reach it alone, however its blocks are computed."""

import pytest
import torch
from torch import Tensor

from control_training import control_in_training
from ssd1b.errors import InputError
from ssd1b.finetune.controlnet import new_controlnet
from ssd1b.finetune.networks import Networks
from ssd1b.finetune.prior import weighted_error
from ssd1b.finetune.settings import make_settings
from ssd1b.model import Model
from ssd1b.training.gradient_checkpointing import checkpoint_gradients
from ssd1b.training.objective import Example
from ssd1b.training.trained import trained_parameters
from tiny import DRAWABLE, inputs

GIVEN = inputs(DRAWABLE.unet, 8, 8)
SETTINGS = make_settings(None, {"method": "controlnet"}, size=64)


def gradients(networks: Networks, controls: Tensor) -> dict[str, Tensor]:
    example = Example(GIVEN, torch.ones(2, 4, 8, 8), torch.ones(2))
    weighted_error(networks.predictor(controls, torch.float32), example).backward()
    return {name: each.grad for name, each in trained_parameters(networks).items() if each.grad is not None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"data.path": None, "data.sources": [{"path": "x", "trigger": "sks"}]},
            "trigger is for method lora",
        ),
        ({"method": "lora"}, "controls is for method controlnet, got lora"),
        ({"data.controls": None}, r"needs controls \(--controls\): beside, edges or a folder"),
        (
            {"samples": ("a", "b", "c")},
            r"sample_controls .* one for all or one for each: got 3 samples with 0",
        ),
        ({"samples": ("a", "b", "c"), "sample_controls": ("x", "y")}, "got 3 samples with 2"),
        ({"sample_controls": ("x",)}, "got 0 samples with 1"),
    ],
)
def test_combinations_that_no_controlnet_can_learn_from_are_refused(
    given: dict[str, object], message: str
) -> None:
    common = {"method": "controlnet", "data.path": "x", "data.controls": "edges"}
    with pytest.raises(InputError, match=message):
        make_settings(None, {**common, **given}, size=64)


def test_each_source_may_have_controls_of_its_own() -> None:
    sources = [{"path": "a", "controls": "edges"}, {"path": "b", "controls": "folder"}]
    made = make_settings(None, {"method": "controlnet", "data.sources": sources}, size=64)
    assert not made.follows_edges and made.data.held_out("c").controls == "beside"
    assert make_settings(None, {"method": "controlnet", "data.sources": sources[:1]}, size=64).follows_edges
    with pytest.raises(InputError, match="needs controls"):
        make_settings(None, {"method": "controlnet", "data.sources": [*sources, {"path": "c"}]}, size=64)


def test_gradients_reach_the_controlnet_alone_and_checkpointing_keeps_them() -> None:
    networks, recomputed = (control_in_training(DRAWABLE.unet, SETTINGS) for _ in range(2))
    checkpoint_gradients(recomputed)
    controls = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    plain = gradients(networks, controls)
    held = {f"controlnet.{name}" for name, _ in networks.controlnet.named_parameters()}  # type: ignore[union-attr]
    assert plain.keys() == held and all(each.any() for each in plain.values())
    assert not any(each.grad is not None for each in networks.unet.parameters())
    for name, each in gradients(recomputed, controls).items():
        torch.testing.assert_close(each, plain[name], rtol=1e-4, atol=1e-7)


def test_grey_control_images_are_colours_of_equal_levels() -> None:
    networks = control_in_training(DRAWABLE.unet, SETTINGS)
    grey = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        one, three, dark = (
            networks.predictor(each, torch.float32)(*GIVEN)
            for each in (grey, grey.expand(-1, 3, -1, -1), 0 * grey)
        )
    assert one.equal(three) and not one.equal(dark)


def test_the_seed_decides_what_reads_the_control_image(worded_model: str) -> None:
    model = Model.find(str(worded_model))
    unet = model.network("unet", dtype=torch.float32)
    before = torch.get_rng_state()
    first, same, other = (
        new_controlnet(model, None, unet, seed).controlnet_cond_embedding.conv_in.weight for seed in (3, 3, 4)
    )
    assert first.equal(same) and not first.equal(other) and torch.get_rng_state().equal(before)
