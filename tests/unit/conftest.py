"""A model small enough to draw with in a blink, and the command line called in this process."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ssd1b.cli import main
from ssd1b.tabletop.miniature import cache, train_unet
from ssd1b.training import kernels, loop
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder
from tiny import DRAWABLE, random_weights, worded_weights


@pytest.fixture(scope="session")
def tiny_layout():
    return DRAWABLE


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a whole model with random weights; read only."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(path, ModelInfo(layout=DRAWABLE, settings={"steps": 2}), random_weights(DRAWABLE))
    return path


@pytest.fixture(scope="session")
def worded_model(tmp_path_factory):
    """The same with text encoders that tell words apart."""
    path = tmp_path_factory.mktemp("models") / "worded"
    save_folder(path, ModelInfo(layout=DRAWABLE, settings={"steps": 2}), worded_weights(DRAWABLE))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network, an image encoder beside it and another one, and two pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image_encoder").mkdir()
    for seed, name in enumerate(("net.safetensors", "image_encoder/model.safetensors", "vit.safetensors")):
        save_file({"x": torch.full((3,), float(seed))}, name)
    Image.new("RGB", (64, 32), "red").save("a.png")
    Image.new("RGB", (64, 32), "blue").save("b.png")
    return tmp_path


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


@pytest.fixture
def read_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the batches of trainings in this process: starting another costs more than a few short steps."""
    monkeypatch.setattr(
        loop, "_read_ahead", lambda share, start, stop, _: (share[step] for step in range(start, stop))
    )


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch, read_in_process: None) -> None:
    """Make trainings short: no compiler, batches as in ``read_in_process``, and a few images of Tabletop."""
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    monkeypatch.setattr(train_unet, "PICTURES", 8)
    monkeypatch.setattr(train_unet, "SHARD", 8)
    monkeypatch.setattr(cache, "SHARD", 8)


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount disks of given sizes, such as "8m"; skips without the right to."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        with suppress(FileNotFoundError):
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                mounted.append(place)
                return place
        pytest.skip("needs the right to mount a small disk")

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
