"""Loading never holds two copies: the peak of the resident memory, in a process of its own."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssd1b.layouts import VEGA
from ssd1b.weights.configs import unet_config
from ssd1b.weights.files import write_json

from .cases import unet_shapes

WIDE = replace(
    VEGA, levels=tuple(replace(level, channels=96 * 2**i) for i, level in enumerate(VEGA.levels)), head_dim=32
)

LOAD = """
import re, sys
from pathlib import Path
import torch
from ssd1b.models.unet import UNet
from ssd1b.weights.loading import load_component
from ssd1b.weights.opening import open_checkpoint

def resident(kind):
    return int(re.search(rf"{kind}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

checkpoint = open_checkpoint(Path(sys.argv[1]), half=sys.argv[3] == "True")
with torch.device("meta"):
    unet = UNet(checkpoint.unet)
torch.ones(1000, 1000).half().aminmax()  # what torch allocates once
Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present
before = resident("VmRSS")
load_component(unet, checkpoint, "unet", dtype=getattr(torch, sys.argv[2]))
for parameter in unet.parameters():
    parameter.detach().view(-1)[::1024].sum()  # what is only mapped is not resident before it is used
weights = sum(parameter.nbytes for parameter in unet.parameters())
print(weights, resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A UNet of 69 million parameters, 276 MB in float32."""
    path = tmp_path_factory.mktemp("models") / "unet"
    path.mkdir()
    tensors = {name: torch.zeros(shape) for name, shape in unet_shapes(WIDE).items()}
    save_file(tensors, path / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: t.half() for name, t in tensors.items()}, path / "diffusion_pytorch_model.fp16.safetensors"
    )
    write_json(path / "config.json", unet_config(WIDE, 128))
    return path


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures with Linux's /proc")
@pytest.mark.parametrize(("dtype", "half"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_peak_memory_is_at_most_a_quarter_over_the_weights(folder, dtype, half):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, folder, dtype, str(half)], capture_output=True, text=True, check=True
    )
    weights, peak = map(int, done.stdout.split())
    assert weights > 130e6
    assert 0.9 * weights < peak < 1.25 * weights, f"{peak / weights:.2f} of the weights"
