"""A model small enough to draw with in a blink, and the command line called in this process."""

import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssd1b.cli import main
from ssd1b.layouts import KOALA_700M, VAELayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.folder import save_folder
from tiny import tiny

TINY = replace(
    tiny(KOALA_700M),
    vae=VAELayout(channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4, scaling_factor=0.5),
    size=64,
)
"""KOALA has the fewest blocks, and a VAE of factor 8 is what sizes on the command line are for."""


@pytest.fixture(scope="session")
def tiny_layout():
    return TINY


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a whole model with random weights; read only."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    networks = {
        "unet": UNet(TINY.unet),
        "vae": VAE(TINY.vae),
        "text_encoder": TextEncoder(TINY.text_encoder),
        "text_encoder_2": TextEncoder(TINY.text_encoder_2),
    }
    info = ModelInfo(layout=TINY, settings={"steps": 2})
    save_folder(path, info, {part: network.state_dict() for part, network in networks.items()})
    return path


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Call ``ssd1b`` with arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def image_at():
    """Read an image and close its file."""

    def read(path: Path) -> Image.Image:
        with Image.open(path) as image:
            image.load()
        return image

    return read


@pytest.fixture(scope="session")
def picture_of(tiny_model, tmp_path_factory):
    """A picture that ``ssd1b generate`` drew, in a format of one's choice; read only."""
    made: dict[str, Path] = {}

    def path(picture_format: str = "png") -> Path:
        if picture_format not in made:
            out = tmp_path_factory.mktemp("drawn")
            arguments = ["generate", "a red cube", "--model", tiny_model, "--seed", 7, "--out", out]
            code = main([str(each) for each in [*arguments, "--format", picture_format, "--dtype", "fp32"]])
            assert code == 0
            (made[picture_format],) = out.iterdir()
        return made[picture_format]

    return path
