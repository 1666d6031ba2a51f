"""A disk that fills: one line, nothing half-written, and everything goes on when there is room again."""

import errno
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssd1b.errors import InputError
from ssd1b.tabletop.miniature import cache
from ssd1b.training import logs
from ssd1b.training.data.cache import Cache
from ssd1b.training.logs import Log
from ssd1b.training.loop import train
from ssd1b.training.settings import LoopSettings

pytestmark = pytest.mark.usefixtures("read_in_process")

Batch = dict[str, Tensor]

SETTINGS = LoopSettings(
    steps=12, batch_size=8, learning_rate=1e-2, warmup_steps=2, decay_steps=4, checkpoint_steps=3, log_steps=1
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(frozen=True)
class Numbers:
    """Fills the disk at a step."""

    disk: Path | None = None
    full_at: int = -1
    leave: int = 0

    def __getitem__(self, step: int) -> Batch:
        if step == self.full_at and self.disk is not None:
            fill(self.disk, self.leave)
        return {"x": torch.randn(8, 64, generator=torch.Generator().manual_seed(step))}


def fill(disk: Path, leave: int = 0) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


def run(out: Path, batches: Numbers, *, resume: bool = False, log_steps: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (model(batch["x"]) - batch["x"]).square().mean()}

    settings = replace(SETTINGS, log_steps=log_steps)
    return train(model, batches, loss, settings, out, resume=resume, label="test").state_dict()


@pytest.mark.parametrize(("log_steps", "leave"), [(1, 0), (1, 2**16), (100, 0), (100, 2**16)])
def test_a_training_on_a_full_disk_ends_in_a_line_and_goes_on(
    tmp_path: Path, disk: Path, log_steps: int, leave: int
) -> None:
    whole = run(tmp_path / "whole", Numbers(), log_steps=log_steps)
    with pytest.raises(InputError, match="no space left on the disk") as told:
        run(disk / "run", Numbers(disk, 7, leave), log_steps=log_steps)
    assert "\n" not in str(told.value)
    folder = disk / "run/checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names and all(name.startswith("step-") and name.endswith(".safetensors") for name in names)
    (disk / "filler").unlink()
    ended = run(disk / "run", Numbers(), resume=True, log_steps=log_steps)
    assert all(ended[name].equal(tensor) for name, tensor in whole.items())


def test_tensorboard_is_not_asked_to_write_on_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    log = Log(tmp_path, 0, silent=False)
    log.write(1, {"loss": 1.0})
    before = (tmp_path / "log.jsonl").read_text()
    monkeypatch.setattr(logs.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"cannot write the log in .*no space left on the disk"):
        log.write(2, {"loss": 1.0})
    assert (tmp_path / "log.jsonl").read_text() == before and not capfd.readouterr().err

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log._board, "close", full)
    log.close()


def test_a_cache_on_a_full_disk_keeps_what_is_whole(disk: Path) -> None:
    kept = Cache(disk / "cache")
    keys = [f"{number:040x}" for number in range(100)]
    with pytest.raises(InputError, match="no space left on the disk"):
        for key in keys:
            kept.write(key, {"latents": torch.full((4, 64, 64), 1.0)})
    there = [key for key in keys if kept.read(key) is not None]
    assert 5 < len(there) < 50
    files = [path for path in disk.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(kept.path(key) for key in there)
    for path in files[:3]:
        path.unlink()
    kept.write(keys[-1], {"latents": torch.zeros(4, 64, 64)})
    assert kept.read(keys[-1]) is not None


def test_renders_on_a_full_disk_are_made_again(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD", 8)

    made: list[range] = []

    def made_items(indices: range) -> np.ndarray:
        made.append(indices)
        return np.full((8, 64, 1024), indices.start, np.uint8)

    def opened(count: int) -> cache.Shards:
        return cache.Shards(disk / "shards", count, made_items, label="")

    with pytest.raises(InputError, match="no space left on the disk"):
        opened(80)
    assert [path.suffix for path in (disk / "shards").iterdir()] == [".npy"] * (len(made) - 1)
    before = len(made)
    assert len(opened(16)) == 16 and len(made) == before
    first = disk / "shards/00000000.npy"
    first.write_bytes(first.read_bytes()[:1000])  # a power failure
    assert opened(16)[np.array([3, 9])][:, 0, 0].tolist() == [0, 8]
    assert len(made) == before + 1
