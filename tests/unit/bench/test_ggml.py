"""What stable-diffusion.cpp is given. It takes a compiler to install, so something stands for it here."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ssd1b.bench import ggml
from ssd1b.bench.case import make_case
from ssd1b.weights.opening import open_single_file
from tiny import TINY


class Stand:
    """Keeps what it was asked, and reads the file while it is there."""

    def __init__(self, model_path: str, **how: object) -> None:
        self.layout = open_single_file(Path(model_path)).info.layout
        self.first = load_file(model_path)["model.diffusion_model.input_blocks.0.0.weight"]
        self.how, self.asked = how, []
        Stand.last = self  # the one that the engine made

    def generate_image(self, **given: object) -> list[Image.Image]:
        self.asked.append(given)
        return [Image.new("RGB", (8, 8))]


@pytest.mark.parametrize(("quantized", "kind"), [(None, "bf16"), ("q8_0", "q8_0")])
def test_it_gets_the_same_weights_settings_and_noise_levels(monkeypatch, quantized, kind):
    monkeypatch.setitem(sys.modules, "stable_diffusion_cpp", SimpleNamespace(StableDiffusion=Stand))
    case = make_case("picture", TINY, latent=8, batch=2, steps=2)
    draw = ggml.load(case, [3.5, 1.25, 0.0], torch.bfloat16, quantized=quantized)
    assert len(draw()) == 2
    assert Stand.last.layout.unet == TINY.unet
    assert torch.equal(Stand.last.first, case.network["unet"].conv_in.weight.bfloat16())
    assert Stand.last.how["wtype"] == kind
    for asked in Stand.last.asked:
        assert asked["sigmas"] == "3.5,1.25,0.0"
        assert (asked["cfg_scale"], asked["sample_method"], asked["sample_steps"]) == (9.0, "euler", 2)
        assert (asked["width"], asked["height"]) == (case.settings["width"], case.settings["height"])
