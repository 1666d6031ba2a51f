"""Each kind of trouble has its class, whatever is called; the command line ends with 2 for all of them."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssd1b.cli.app import main
from ssd1b.errors import (
    ConflictError,
    FailedError,
    InputError,
    NotFoundError,
    OutOfSpaceError,
    UnavailableError,
    prefix_errors,
)
from ssd1b.extras import require
from ssd1b.files import read_file
from ssd1b.images import read_recipe
from ssd1b.presets import load_preset
from ssd1b.runtime import choose_device
from ssd1b.saving import claim_folder, renewing, replacing, writing
from ssd1b.settings import resolve_settings
from ssd1b.training import loop
from ssd1b.training.loop import train
from ssd1b.training.settings import LoopSettings
from ssd1b.weights import hub
from ssd1b.weights.opening import open_checkpoint

SETTINGS = LoopSettings(steps=3, batch_size=2, learning_rate=1e-3, decay_steps=0, max_skipped=1)


def full(path: Path) -> None:
    with replacing(path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")


def full_for_safetensors(path: Path) -> None:
    with writing(path / "file"):
        raise OSError("Error while serializing: I/O error: No space left on device (os error 28)")


def over_a_file(path: Path) -> None:
    (path / "file").write_text("mine")
    with renewing(path / "file") as aside:
        aside.write_text("another")


def in_a_folder_of_others(path: Path) -> None:
    (path / "mine").touch()
    claim_folder(path)


def learn(
    path: Path, loss: Callable[[nn.Module, Tensor], dict[str, Tensor]], *, resume: bool = False
) -> None:
    train(nn.Linear(2, 2), [torch.ones(2, 2)] * 3, loss, SETTINGS, path, resume=False, label="test")


def broken(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"loss": model(x).sum() * torch.nan}


def learn_twice(path: Path) -> None:
    for _ in range(2):
        learn(path, lambda model, x: {"loss": model(x).square().mean()})


CALLS: dict[str, tuple[type[InputError], Callable[[Path], object]]] = {
    "a setting": (
        InputError,
        lambda path: resolve_settings("a cat", family="sdxl", model_defaults={}, preset=None, steps=0),
    ),
    "no picture": (InputError, lambda path: read_recipe(Path(__file__))),
    "no file": (NotFoundError, lambda path: read_file(path / "none", most=1)),
    "no picture's file": (NotFoundError, lambda path: read_recipe(path / "none.png")),
    "no preset": (NotFoundError, lambda path: load_preset("nonne")),
    "no preset's file": (NotFoundError, lambda path: load_preset(str(path / "none.toml"))),
    "no model": (NotFoundError, lambda path: hub.resolve("nonne", offline=True)),
    "no model's file": (NotFoundError, lambda path: hub.resolve(str(path / "none.safetensors"))),
    "no model in a folder": (NotFoundError, open_checkpoint),
    "a file in the way": (ConflictError, over_a_file),
    "a folder of others": (ConflictError, in_a_folder_of_others),
    "a run in the way": (ConflictError, learn_twice),
    "the hub": (UnavailableError, lambda path: hub.resolve("somebody/something", offline=True)),
    "a device": (UnavailableError, lambda path: choose_device("cuda:99")),
    "a library": (UnavailableError, lambda path: require("this", "no_such_library")),
    "a full disk": (OutOfSpaceError, full),
    "a full disk, told by safetensors": (OutOfSpaceError, full_for_safetensors),
    "a training": (FailedError, lambda path: learn(path, broken)),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_went_wrong_has_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(loop, "_read_ahead", lambda share, start, stop, _: (share[i] for i in range(stop)))
    expected, call = CALLS[name]
    with pytest.raises(InputError) as raised:
        call(tmp_path)
    assert type(raised.value) is expected
    assert isinstance(raised.value, ValueError) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "none.png"], ["presets", "nonne"], ["generate", "a cat", "--model", "./none"],
        ["generate", "a cat", "--device", "cuda:99"], ["generate", "a cat", "--steps", "0"],
        ["generate", "a cat", "--model", "somebody/something", "--offline"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_class_ends_the_command_line_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_message_that_says_where_keeps_the_class() -> None:
    with pytest.raises(NotFoundError, match=r"^preset x: no such file$"), prefix_errors("preset x"):
        raise NotFoundError("no such file")
