"""SSD-1B and SDXL at their published size, on random weights: they load and draw, without a GPU."""

import multiprocessing
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssd1b.layouts import CLIP_BIGG, CLIP_L, UNETS, ModelLayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder

pytestmark = pytest.mark.full_size

MEMORY = 20e9
"""Bytes that drawing may take at most, so that a machine with 24 GB does it."""


def write_model(folder: Path, name: str) -> None:
    """Write a model of published shapes with small random weights, in bfloat16."""
    layout = ModelLayout(name=name, unet=UNETS[name], text_encoder=CLIP_L, text_encoder_2=CLIP_BIGG)
    with torch.device("meta"):
        parts = {
            "unet": UNet(layout.unet),
            "vae": VAE(layout.vae),
            "text_encoder": TextEncoder(CLIP_L),
            "text_encoder_2": TextEncoder(CLIP_BIGG),
        }
    torch.manual_seed(0)
    weights = {
        part: {
            key: torch.randn(value.shape, dtype=torch.bfloat16) * 0.02
            for key, value in module.state_dict().items()
        }
        for part, module in parts.items()
    }
    save_folder(folder, ModelInfo(layout=layout), weights, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["ssd-1b", "sdxl"])
def test_draws_two_steps_at_512(tmp_path: Path, name: str) -> None:
    model = tmp_path / name
    # In a process of its own, which gives all of its memory back.
    writer = multiprocessing.get_context("spawn").Process(target=write_model, args=(model, name))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    command = [
        sys.executable, "-m", "ssd1b", "generate", "a lighthouse at dusk",
        "--model", str(model), "--size", "512", "--steps", "2", "--seed", "1",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MEMORY
