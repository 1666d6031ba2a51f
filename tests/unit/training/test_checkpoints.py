"""Checkpoints: what is restored is what was written, to the bit, and nothing of a killed run stays behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ssd1b import saving
from ssd1b.errors import InputError
from ssd1b.training import checkpoints
from ssd1b.training.processes import Processes
from ssd1b.training.settings import LoopSettings
from ssd1b.training.task import Learner

SETTINGS = LoopSettings(
    steps=100, batch_size=1, learning_rate=1e-3, decay_steps=0, ema_decay=0.0, checkpoint_steps=1
)


@cache
def processes() -> Processes:
    return Processes(torch.device("cpu"), SETTINGS)


def learners_of(seed: int, settings: LoopSettings = SETTINGS, width: int = 3) -> Mapping[str, Learner]:
    torch.manual_seed(seed)
    return Learner(nn.Linear(width, 2), lambda model, batch: {}, settings, processes()).learners


def save(out: Path, step: int, settings: LoopSettings = SETTINGS) -> Path:
    """A checkpoint whose weights tell its step."""
    checkpoints.clear(out)
    folder = out / "checkpoints"
    checkpoints.save(folder, step, settings, learners_of(step, settings), processes())
    return folder / f"step-{step:08d}.safetensors"


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def rewritten(path: Path, **said: str | None) -> None:
    """The same tensors with other metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        kept = {**file.metadata(), **said}
    save_file(tensors, path, {name: text for name, text in kept.items() if text is not None})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def as_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "a web page": lambda path: path.write_text("<html>"),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04."),
    "folder": as_folder,
    "dangling link": as_link_to_nothing,
    "link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "named pipe": as_pipe,
    "without step": lambda path: rewritten(path, step=None),
    "another step": lambda path: rewritten(path, step="7"),
    "a step that is none": lambda path: rewritten(path, step="-3"),
    "a step of 5,000 digits": lambda path: rewritten(path, step="9" * 5000),
    "other settings": lambda path: rewritten(path, settings="{}"),
    "without settings": lambda path: rewritten(path, settings=None),
    "without digest": lambda path: rewritten(path, digest=None),
    "another digest": lambda path: rewritten(path, digest="00" * 20),
    "without metadata": lambda path: save_file({"x": torch.zeros(1)}, path),
    "huge header": lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_taken_in_place_of_a_newest_that_cannot_be_used(
    tmp_path: Path, damage: str
) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    DAMAGES[damage](second)
    with pytest.warns(
        UserWarning, match=r"step-00000002.*cannot be used.*resumes from step-00000001"
    ) as told:
        assert checkpoints.newest(first.parent, tidy=True) == first
    assert len(told) == 1 and len(str(told[0].message).splitlines()) == 1
    aside = second.with_name(f"{second.name}.damaged")
    assert os.path.lexists(aside) and not os.path.lexists(second)
    if damage == "folder":
        assert (aside / "mine.txt").read_text() == "mine"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoints.newest(first.parent, tidy=True) == first
    assert save(tmp_path, 2) == checkpoints.newest(first.parent)


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    whole = second.read_bytes()
    for place in range(0, len(whole), 11):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        second.write_bytes(flipped)
        found = checkpoints.newest(first.parent)
        if found != first:  # spaces behind the header, which say nothing
            assert restored(found) == restored(first.parent / second.name)
            second.write_bytes(whole)
            assert restored(found) == restored(second)
    data = int.from_bytes(whole[:8], "little") + 8
    for place in range(data, len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 64
        second.write_bytes(flipped)
        assert checkpoints.newest(first.parent) == first, place


def restored(path: Path | None) -> tuple[int, dict[str, list]]:
    assert path is not None
    learners = learners_of(99)
    step = checkpoints.restore(path, learners)
    return step, {name: tensor.tolist() for name, tensor in checkpoints.named_tensors(learners).items()}


def test_if_none_can_be_used_nothing_is_begun_anew(tmp_path: Path) -> None:
    paths = [save(tmp_path, 1), save(tmp_path, 2)]
    for path in paths:
        cut(path)
    with pytest.raises(InputError, match=r"no checkpoint in .* can be used \(step-00000002.*step-00000001"):
        checkpoints.newest(paths[0].parent, tidy=True)
    assert all(path.exists() for path in paths)


def test_a_newer_one_that_is_damaged_does_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    paths = {step: save(tmp_path, step) for step in (1, 2, 9)}
    cut(paths[9])
    for step in (3, 4):
        paths[step] = save(tmp_path, step)
    assert {path for path in paths.values() if path.exists()} == {paths[3], paths[4], paths[9]}


def test_what_is_no_file_of_ours_is_never_removed(tmp_path: Path) -> None:
    paths = {step: save(tmp_path, step) for step in (1, 2)}
    as_folder(paths[1])
    paths[2].rename(tmp_path / "elsewhere")
    paths[2].symlink_to(tmp_path / "elsewhere")
    for step in (3, 4, 5):
        save(tmp_path, step)
    assert (paths[1] / "mine.txt").exists() and paths[2].is_symlink() and (tmp_path / "elsewhere").exists()


OURS = (f".{'0a' * 16}.partial", f".{'b1' * 16}.partial")
NOT_OURS = (
    "notes.partial", ".hidden.partial", f".{'0a' * 16}.partial.txt", f"x.{'0a' * 16}.partial", ".tmpX7abcd",
    f".{'0A' * 16}.partial", "step-00000003.safetensors.bak", "step-3.safetensors", "model.old",
)  # fmt: skip


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for folder in (tmp_path, path.parent):
        (folder / OURS[0]).write_bytes(b"half")
        (folder / OURS[1]).mkdir()
        (folder / OURS[1] / ".tmpAbCdEf").write_bytes(b"half")
        for name in NOT_OURS:
            (folder / name).write_bytes(b"mine")
        (folder / "folder.partial").mkdir()
        (folder / f".{'2c' * 16}.partial").symlink_to(tmp_path / "notes.partial")
    checkpoints.clear(tmp_path)
    for folder in (tmp_path, path.parent):
        assert not any((folder / name).exists() for name in OURS)
        assert all(
            (folder / name).exists() for name in (*NOT_OURS, "folder.partial", f".{'2c' * 16}.partial")
        )
    assert path.exists()


def writing_for_long(out: Path) -> None:
    """What the child process of the next test does."""
    checkpoints.clear(out)
    checkpoints.save(out / "checkpoints", 1, SETTINGS, learners_of(0, width=20_000_000), processes())


def test_sigkill_while_a_checkpoint_is_written_leaves_nothing_that_is_not_found(tmp_path: Path) -> None:
    here = Path(__file__)
    script = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import pathlib, {here.stem}\n"
    script += f"{here.stem}.writing_for_long(pathlib.Path({str(tmp_path)!r}))\n"
    child = subprocess.Popen([sys.executable, "-c", script])
    folder = tmp_path / "checkpoints"
    while child.poll() is None and not any(each.stat().st_size > 2**20 for each in written(folder)):
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the checkpoint was written before the process could be killed"
    assert written(folder), "something was left"
    checkpoints.clear(tmp_path)
    assert not list(folder.iterdir())


def written(folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.stat().st_size:
                found.append(path)
        except OSError:
            continue
    return found


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync, named = os.fsync, saving._move
    target = tmp_path / "checkpoints/step-00000001.safetensors"

    def syncing(descriptor: int) -> None:
        assert not target.exists() or synced, "written in place"
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    def moving(source: Path, to: Path, *rest: object) -> None:
        if to == target:
            assert synced and synced[-1] == source.stat().st_size, "renamed before it was on the disk"
            assert not target.exists(), "written in place"
        named(source, to, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(saving, "_move", moving)
    save(tmp_path, 1)
    assert target.exists() and len(synced) >= 2, "the file, and then its folder"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adafactor"}, "is from a run with optimizer adamw, not optimizer adafactor$"),
        ({"muon_rate": 0.01}, "is from a run with optimizer adamw, not optimizer adamw and Muon$"),
        ({"ema_decay": 0.9}, "is from a run with optimizer adamw, not optimizer adamw, averaged$"),
    ],
)
def test_a_checkpoint_of_another_method_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(InputError, match=message):
        checkpoints.restore(path, learners_of(1, replace(SETTINGS, **changes)))  # type: ignore[arg-type]


def test_a_checkpoint_with_an_average_is_refused_by_a_run_without(tmp_path: Path) -> None:
    path = save(tmp_path, 1, replace(SETTINGS, ema_decay=0.9))
    with pytest.raises(InputError, match=r"optimizer adamw, averaged, not optimizer adamw$"):
        checkpoints.restore(path, learners_of(1))


def test_a_checkpoint_of_other_learners_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(InputError, match="is from a run with no student, not optimizer adamw"):
        checkpoints.restore(path, {"student": learners_of(1)["model"]})


def test_weights_under_two_names_are_saved_once_each(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    learners = Learner(model, lambda model, batch: {}, SETTINGS, processes()).learners
    checkpoints.clear(tmp_path)
    folder = tmp_path / "checkpoints"
    checkpoints.save(folder, 1, SETTINGS, learners, processes())
    path = checkpoints.newest(folder)
    assert path is not None and checkpoints.restore(path, learners) == 1
    assert json.loads(metadata(path)["settings"])["model"] == json.loads(json.dumps(asdict(SETTINGS)))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.write_text("a file")
    with pytest.raises(InputError, match="cannot write"):
        checkpoints.clear(tmp_path)
    tmp_path.unlink()
    tmp_path.mkdir()
