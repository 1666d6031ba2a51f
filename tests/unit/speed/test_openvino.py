"""OpenVINO computes what torch does, converts once, and nearly so in eight bits; it reports to nobody."""

import sys
from importlib.util import find_spec

import jaxtyping
import pytest
import torch

from ssd1b.computing import Computing
from ssd1b.errors import InputError
from ssd1b.pipeline import Pipeline
from ssd1b.speed import openvino

PROMPT = "a small red cone on a white background"
SETTINGS = {"seed": 3, "steps": 4}


def load(model, computing, told):
    return Pipeline.load(
        str(model), device="cpu", dtype="fp32", offline=True, computing=computing, told=told.append
    )


def pixels(pipeline, **settings):
    (picture,) = pipeline.generate(PROMPT, **SETTINGS, **settings)
    return torch.tensor(bytearray(picture.image.tobytes())).float()


@pytest.fixture
def shapes_unchecked(monkeypatch):
    """While a network is traced its sides are tensors, which the checks of these tests would refuse."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("shapes_unchecked")
def test_openvino_draws_the_same_picture(tiny_model, tmp_path, monkeypatch):
    if missing := [name for name in ("openvino", "nncf") if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    monkeypatch.setattr(openvino, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(openvino, "SAMPLES", 8)
    told: list[str] = []
    exact = pixels(load(tiny_model, Computing(), told))
    way = Computing(backend="openvino")
    converted = load(tiny_model, way, told)
    assert told == ["OpenVINO converts the UNet, once", "OpenVINO converts the VAE, once"]
    assert (pixels(converted) - exact).abs().max() <= 1
    wider = {"width": 80, "guidance_interval": (0.0, 0.5), "negative_prompt": "fog"}
    by_torch = pixels(load(tiny_model, Computing(), told), **wider)
    assert (pixels(converted, **wider) - by_torch).abs().max() <= 1
    told.clear()
    load(tiny_model, way, told)
    assert told == [], "it is converted once"
    with pytest.raises(InputError, match="feature_reuse is 0 with backend openvino"):
        pixels(converted, feature_reuse=0.2)

    small = load(tiny_model, Computing(backend="openvino", quantized="int8"), told)
    assert [words.split(",")[0] for words in told] == [
        "a calibration: 8 steps of pictures", "NNCF quantizes the UNet"
    ]  # fmt: skip
    assert 0 < (pixels(small) - exact).abs().mean() < 20
    assert sys.modules["openvino_telemetry"] is None


@pytest.mark.parametrize(
    ("missing", "quantized", "words"),
    [("openvino", None, "needs openvino"), ("nncf", "int8", "needs nncf")],
)
def test_what_is_not_installed(missing, quantized, words, monkeypatch):
    monkeypatch.setattr(openvino, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(InputError, match=words):
        Pipeline.load(computing=Computing(backend="openvino", quantized=quantized), device="cpu")
    with pytest.raises(InputError, match="on a CPU, not on cuda"):
        openvino.check_openvino(torch.device("cuda"), quantized=False)
