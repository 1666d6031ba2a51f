"""OpenVINO computes what torch does, nearly so in int8, and converts once; it sends no telemetry."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from ssd1b.errors import InputError
from ssd1b.execution import Execution
from ssd1b.pipeline import Pipeline
from ssd1b.speed import openvino

# In a separate process: while a network is traced, its sizes are tensors, which the tests' type checks
# reject, and NNCF patches torch for the whole process.
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
messages = []

def load(**options):
    options = {"execution": Execution(**options), "notify": messages.append}
    return Pipeline.load(model, device="cpu", dtype="fp32", offline=True, **options)

def pixels(pipeline, **settings):
    (picture,) = pipeline.generate("a small red cone", seed=3, steps=4, **settings)
    return torch.tensor(bytearray(picture.image.tobytes())).float()

by_torch = load()
exact = pixels(by_torch)
converted = load(backend="openvino")
assert [text[:19] for text in messages] == ["converting the UNet", "converting the VAE "], messages
assert (pixels(converted) - exact).abs().max() <= 1
wider = {"width": 80, "guidance_interval": (0.0, 0.5), "negative_prompt": "fog"}
assert (pixels(converted, **wider) - pixels(by_torch, **wider)).abs().max() <= 1
messages.clear()
load(backend="openvino")
assert messages == [], "it is converted once"
try:
    pixels(converted, feature_reuse=0.2)
except InputError as error:
    assert str(error).startswith("feature_reuse must be 0 with backend openvino")
else:
    raise AssertionError("features were reused")
quantized = load(backend="openvino", quantized="int8")
assert [text.split(" (")[0] for text in messages] == [
    "calibrating int8 on 8 denoising steps", "quantizing the UNet with NNCF"
], messages
assert 0 < (pixels(quantized) - exact).abs().mean() < 20
assert sys.modules["openvino_telemetry"] is None
"""


def test_openvino_generates_the_same_image(tiny_model, tmp_path):
    if missing := [name for name in ("openvino", "nncf") if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    command = [sys.executable, "-c", DRAW, str(tiny_model), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "quantized", "message"),
    [("openvino", None, "needs openvino"), ("nncf", "int8", "needs nncf")],
)
def test_missing_libraries_are_named(missing, quantized, message, monkeypatch):
    monkeypatch.setattr("ssd1b.extras.find_spec", lambda name: None if name == missing else object())
    with pytest.raises(InputError, match=message):
        Pipeline.load(execution=Execution(backend="openvino", quantized=quantized), device="cpu")
    with pytest.raises(InputError, match="runs on a CPU, not on cuda"):
        openvino.check_openvino(torch.device("cuda"), quantized=False)
