"""Arguments for stable-diffusion.cpp, which needs a compiler to install, so a stub stands in for it."""

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


class Stub:
    """Records its arguments, and reads the file before it is deleted."""

    def __init__(self, model_path: str, **options: object) -> None:
        self.layout = open_single_file(Path(model_path)).info.layout
        self.first = load_file(model_path)["model.diffusion_model.input_blocks.0.0.weight"]
        self.options, self.calls = options, []
        Stub.last = self

    def generate_image(self, **given: object) -> list[Image.Image]:
        self.calls.append(given)
        return [Image.new("RGB", (8, 8))]


@pytest.mark.parametrize(("quantized", "kind"), [(None, "bf16"), ("q8_0", "q8_0")])
def test_it_gets_the_same_weights_settings_and_noise_levels(monkeypatch, quantized, kind):
    monkeypatch.setitem(sys.modules, "stable_diffusion_cpp", SimpleNamespace(StableDiffusion=Stub))
    case = make_case("picture", TINY, latent=8, batch=2, steps=2)
    draw = ggml.load(case, [3.5, 1.25, 0.0], torch.bfloat16, quantized=quantized)
    assert len(draw()) == 2
    assert Stub.last.layout.unet == TINY.unet
    assert torch.equal(Stub.last.first, case.network["unet"].conv_in.weight.bfloat16())
    assert Stub.last.options["wtype"] == kind
    for call in Stub.last.calls:
        assert call["sigmas"] == "3.5,1.25,0.0"
        assert (call["cfg_scale"], call["sample_method"], call["sample_steps"]) == (9.0, "euler", 2)
        assert (call["width"], call["height"]) == (case.settings["width"], case.settings["height"])
