"""OpenVINO computes what torch does, converts once, and nearly so in eight bits; it reports to nobody."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from ssd1b.errors import InputError
from ssd1b.execution import Execution
from ssd1b.pipeline import Pipeline
from ssd1b.speed import openvino

# In a process of its own: while a network is traced its sides are tensors, which the checks of these tests
# refuse, and NNCF changes torch for everyone who comes after it.
DRAW = """
import sys, warnings
from pathlib import Path
import torch
import ssd1b.pipeline
from ssd1b.execution import Execution
from ssd1b.errors import InputError
from ssd1b.pipeline import Pipeline
from ssd1b.speed import openvino

warnings.simplefilter("ignore")
model, cache = sys.argv[1:]
openvino.cache_folder = lambda: Path(cache)
ssd1b.pipeline.CALIBRATION_STEPS = 8
told = []

def load(**how):
    way = Execution(**how)
    return Pipeline.load(model, device="cpu", dtype="fp32", offline=True, execution=way, notify=told.append)

def pixels(pipeline, **settings):
    (picture,) = pipeline.generate("a small red cone", seed=3, steps=4, **settings)
    return torch.tensor(bytearray(picture.image.tobytes())).float()

by_torch = load()
exact = pixels(by_torch)
converted = load(backend="openvino")
assert told == ["OpenVINO converts the UNet, once", "OpenVINO converts the VAE, once"], told
assert (pixels(converted) - exact).abs().max() <= 1
wider = {"width": 80, "guidance_interval": (0.0, 0.5), "negative_prompt": "fog"}
assert (pixels(converted, **wider) - pixels(by_torch, **wider)).abs().max() <= 1
told.clear()
load(backend="openvino")
assert told == [], "it is converted once"
try:
    pixels(converted, feature_reuse=0.2)
except InputError as error:
    assert str(error).startswith("feature_reuse is 0 with backend openvino")
else:
    raise AssertionError("features were kept")
small = load(backend="openvino", quantized="int8")
assert [words.split(",")[0] for words in told] == [
    "a calibration: 8 steps of pictures", "NNCF quantizes the UNet"
], told
assert 0 < (pixels(small) - exact).abs().mean() < 20
assert sys.modules["openvino_telemetry"] is None
"""


def test_openvino_draws_the_same_picture(tiny_model, tmp_path):
    if missing := [name for name in ("openvino", "nncf") if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    command = [sys.executable, "-c", DRAW, str(tiny_model), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "quantized", "words"),
    [("openvino", None, "needs openvino"), ("nncf", "int8", "needs nncf")],
)
def test_what_is_not_installed(missing, quantized, words, monkeypatch):
    monkeypatch.setattr("ssd1b.extras.find_spec", lambda name: None if name == missing else object())
    with pytest.raises(InputError, match=words):
        Pipeline.load(execution=Execution(backend="openvino", quantized=quantized), device="cpu")
    with pytest.raises(InputError, match="on a CPU, not on cuda"):
        openvino.check_openvino(torch.device("cuda"), quantized=False)
