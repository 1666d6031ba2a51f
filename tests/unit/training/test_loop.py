"""The training loop: what was stopped goes on unchanged, and nothing broken reaches the weights."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from killing import importing, kill_often, kills_in_child
from ssd1b import saving
from ssd1b.errors import InputError
from ssd1b.training import checkpoints
from ssd1b.training.batches import cut
from ssd1b.training.guard import Guard
from ssd1b.training.logs import Log
from ssd1b.training.loop import train
from ssd1b.training.precision import computing_in
from ssd1b.training.processes import accelerator
from ssd1b.training.settings import LoopSettings
from ssd1b.weights import files

pytestmark = pytest.mark.usefixtures("read_in_process")

Batch = dict[str, Tensor]

SETTINGS = LoopSettings(
    steps=12,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=2,
    decay_steps=4,
    checkpoint_steps=3,
    log_steps=4,
    seed=3,
)
WITH_MUON = replace(SETTINGS, muon_rate=1e-2)


@dataclass(frozen=True)
class Numbers:
    """Step ``bad`` is broken."""

    bad: int | None = None

    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=generator)
        return {"x": x * float("nan") if step == self.bad else x}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    noise = torch.randn_like(batch["x"])  # from the global generator: a resumed run must draw the same
    return {"loss": (model(batch["x"] + noise) - batch["x"]).square().mean()}


def run(
    out: Path, *, resume: bool = False, settings: LoopSettings = SETTINGS, batches: Numbers = Numbers()
) -> dict:
    return train(make_model(), batches, loss, settings, out, resume=resume, label="test").state_dict()


class Whole(NamedTuple):
    state: dict[str, Tensor]
    out: Path


def tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[LoopSettings], Whole]:
    """Runs that nothing interrupts, one for each settings."""

    @cache
    def begin(settings: LoopSettings) -> Whole:
        out = tmp_path_factory.mktemp("whole")
        return Whole(run(out, settings=settings), out)

    return begin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("settings", [SETTINGS, WITH_MUON], ids=["adamw", "muon"])
def test_a_stopped_run_goes_on_bit_by_bit(
    tmp_path: Path, whole: Callable[[LoopSettings], Whole], number: int, settings: LoopSettings
) -> None:
    expected = whole(settings)

    def stopping(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if batch["x"].equal(Numbers()[4]["x"]):
            os.kill(os.getpid(), number)
        return loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(make_model(), Numbers(), stopping, settings, tmp_path / "cut", resume=False, label="test")
    assert (tmp_path / "cut/checkpoints/step-00000005.safetensors").exists(), (
        "the step was finished, then saved"
    )
    assert_same(run(tmp_path / "cut", resume=True, settings=settings), expected.state)
    last = "checkpoints/step-00000012.safetensors"
    assert_same(tensors(tmp_path / "cut" / last), tensors(expected.out / last))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_a_step_starts_outlives_the_signal_that_stops_the_run(tmp_path: Path, number: int) -> None:
    """As a compiler in the terminal's process group."""
    ended: list[int] = []

    def compiling(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if not ended:
            child = subprocess.Popen(["sleep", "0.2"])
            os.kill(child.pid, number)
            os.kill(os.getpid(), number)
            ended.append(child.wait())
        return loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(make_model(), Numbers(), compiling, SETTINGS, tmp_path, resume=False, label="test")
    assert ended == [0] and (tmp_path / "checkpoints/step-00000001.safetensors").exists()
    child = subprocess.Popen(["sleep", "60"])  # signals are as before
    os.kill(child.pid, number)
    assert child.wait() == -number


def slowly(out: Path) -> None:
    """What the child process of the next test does: a run that lasts long enough to be stopped."""

    def slow_loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        time.sleep(0.2)
        return loss(model, batch)

    train(make_model(), Numbers(), slow_loss, WITH_MUON, out, resume=False, label="test")


def test_a_whole_process_group_that_is_stopped_leaves_a_run_that_goes_on_bit_by_bit(
    tmp_path: Path, whole: Callable[[LoopSettings], Whole]
) -> None:
    script = (
        f"{importing(__file__)}\ntry: {Path(__file__).stem}.slowly(pathlib.Path({str(tmp_path / 'cut')!r}))\n"
    )
    script += "except KeyboardInterrupt: print('interrupted')"
    child = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    checkpoints = tmp_path / "cut/checkpoints"
    while not (checkpoints / "step-00000003.safetensors").exists():
        assert child.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGTERM)  # the process that reads ahead is hit, too
    out, _ = child.communicate(timeout=60)
    assert out.strip() == "interrupted"
    assert not (checkpoints / "step-00000012.safetensors").exists()
    assert_same(run(tmp_path / "cut", resume=True, settings=WITH_MUON), whole(WITH_MUON).state)


OFTEN = replace(WITH_MUON, steps=24, checkpoint_steps=1, log_steps=1, micro_batches=2)
LAST = "checkpoints/step-00000024.safetensors"


def killed_often(folder: str) -> None:
    """The work of the next test's child process."""
    _begin(Path(folder) / "whole")
    kill_often(_begin, Path(folder) / "cut", LAST)


def _begin(out: Path) -> None:
    train(make_model(), Numbers(), loss, OFTEN, out, resume=True, label="test")


def test_a_run_that_is_killed_again_and_again_ends_bit_by_bit_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert kills_in_child(__file__, f"killed_often({str(tmp_path)!r})") >= 4
    assert_same(tensors(tmp_path / "cut" / LAST), tensors(tmp_path / "whole" / LAST))
    assert [row["step"] for row in rows(tmp_path / "cut")] == list(range(1, 25))
    assert not list((tmp_path / "cut").rglob("*.partial"))


class Killed(BaseException):
    """The end of a process, as nothing in it can catch."""


@pytest.mark.parametrize("point", ["before", "half written", "before the move", "before old ones go"])
def test_a_process_that_ends_at_any_point_of_saving_leaves_a_complete_checkpoint(
    tmp_path: Path, whole: Callable[[LoopSettings], Whole], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    expected = whole(SETTINGS).state
    save_file, move, unlink, at = files.save_file, saving._move, Path.unlink, [0]

    def save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        at.append(int(metadata["step"]))
        end_at("before")
        save_file(tensors, path, metadata=metadata)
        if point == "half written":
            os.truncate(path, path.stat().st_size // (2 if at[-1] == 9 else 1))
        end_at("half written")

    def end_at(here: str) -> None:
        if here == point and at[-1] == 9:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", save)
        patch.setattr(saving, "_move", lambda *paths: (end_at("before the move"), move(*paths)))
        patch.setattr(saving, "_remove", lambda path: None)  # a process that is killed tidies nothing up
        patch.setattr(Path, "unlink", lambda path: (end_at("before old ones go"), unlink(path)))
        with pytest.raises(Killed):
            run(tmp_path / "cut")
    newest = checkpoints.newest(tmp_path / "cut/checkpoints")
    assert newest is not None and newest.stem == f"step-0000000{9 if point == 'before old ones go' else 8}"
    assert_same(run(tmp_path / "cut", resume=True), expected)
    assert not list((tmp_path / "cut").rglob("*.partial"))


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_earlier_checkpoint(
    tmp_path: Path, whole: Callable[[LoopSettings], Whole], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(SETTINGS).state
    save_file = files.save_file

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata=metadata)
        if metadata["step"] == "6":
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        with pytest.raises(
            InputError, match=r"no space left.*resume from step-00000003.safetensors"
        ) as raised:
            run(tmp_path / "cut")
    assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["step-00000003.safetensors"]
    assert_same(run(tmp_path / "cut", resume=True), expected)


class Breaking(Numbers):
    """Cannot be read from step 2 on."""

    def __getitem__(self, step: int) -> Batch:
        if step >= 2:
            raise OSError(f"step {step} cannot be read")
        return super().__getitem__(step)


def break_off(out: Path) -> None:
    """What the child process of the next test does."""
    train(make_model(), Breaking(), loss, SETTINGS, out, resume=False, label="test")


def test_data_that_cannot_be_read_end_the_run_and_its_reader(tmp_path: Path) -> None:
    script = f"{importing(__file__)}\n{Path(__file__).stem}.break_off(pathlib.Path({str(tmp_path)!r}))\n"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1
    assert "step 2 cannot be read" in ended.stderr


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, whole: Callable[[LoopSettings], Whole]) -> None:
    run(tmp_path / "torn")
    newest = tmp_path / "torn/checkpoints/step-00000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"step-00000012.*cannot be used.*resumes from step-00000009"):
        assert_same(run(tmp_path / "torn", resume=True), whole(SETTINGS).state)


OTHERS = {
    "micro-batches": replace(SETTINGS, micro_batches=4),
    "adafactor": replace(SETTINGS, optimizer="adafactor"),
    "adamw-8bit": replace(SETTINGS, optimizer="adamw-8bit"),
    "no average": replace(SETTINGS, ema_decay=0.0),
    "spikes": replace(SETTINGS, spike_factor=1.05, max_skipped=100, steps=24, log_steps=24),
}


class Convolutions(nn.Sequential):
    """Weights with other strides than files have, one of them of as many numbers as 8 bits are for."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(4, 64, 3, padding=1), nn.Tanh(), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 4, 1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., None, None].expand(-1, -1, 2, 2)).mean(dim=(2, 3))


@pytest.mark.parametrize("name", OTHERS)
def test_every_way_to_learn_goes_on_bit_by_bit(tmp_path: Path, name: str) -> None:
    if name == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    settings = OTHERS[name]

    def cut_short(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if batch["x"][0].equal(Numbers()[settings.steps // 2]["x"][0]):
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    for out, asked in ((tmp_path / "whole", loss), (tmp_path / "cut", cut_short)):
        with suppress(KeyboardInterrupt):
            train(Convolutions(), Numbers(), asked, settings, out, resume=False, label="test")
    assert not (tmp_path / f"cut/checkpoints/step-{settings.steps:08d}.safetensors").exists()
    train(Convolutions(), Numbers(), loss, settings, tmp_path / "cut", resume=True, label="test")
    last = f"checkpoints/step-{settings.steps:08d}.safetensors"
    assert_same(tensors(tmp_path / "cut" / last), tensors(tmp_path / "whole" / last))
    if name == "spikes":
        assert rows(tmp_path / "cut")[-1]["skipped"] == rows(tmp_path / "whole")[-1]["skipped"] > 0


def test_the_checkpoint_before_the_decay_is_kept_so_that_a_run_can_be_prolonged(tmp_path: Path) -> None:
    run(tmp_path)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}.safetensors" for step in (8, 9, 12)]


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [SETTINGS.share(step) for step in range(SETTINGS.steps)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_the_rate_falls_as_a_cosine() -> None:
    settings = replace(SETTINGS, decay="cosine", decay_steps=10)
    rates = [settings.share(step) for step in range(12)]
    assert rates[:3] == [0.5, 1, 1]
    assert rates[7] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True) and 0 < rates[-1] < 0.03


def test_muon_moves_matrices_and_convolutions_by_as_much_in_every_direction(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(6, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = replace(WITH_MUON, steps=1, warmup_steps=0, decay_steps=0, muon_decay=0.0, ema_decay=0.0)

    def squares(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": model(batch["x"].view(-1, 1, 2, 2).repeat(1, 2, 2, 2)[..., :3, :3]).square().sum()}

    after = train(model, Numbers(), squares, settings, tmp_path, resume=False, label="test").state_dict()
    for name in ("0.weight", "2.weight"):
        moved = torch.linalg.svdvals((after[name] - before[name]).flatten(1))
        rank = int((moved > 1e-4).sum())
        assert rank > 1
        # Newton-Schulz brings singular values near 1, not to it.
        assert (moved[:rank] / WITH_MUON.muon_rate).max() < 2.5
        assert (moved[:2] / WITH_MUON.muon_rate).min() > 0.4


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match="--resume"):
        run(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match="another model"):
        train(nn.Linear(4, 4), Numbers(), loss, SETTINGS, tmp_path, resume=True, label="test")


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    state = run(tmp_path, batches=Numbers(bad=5))
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_loss_that_stays_broken_ends_the_run(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": model(batch["x"]).sum() * float("nan")}

    with pytest.raises(InputError, match="3 steps in a row"):
        train(
            make_model(),
            Numbers(),
            broken,
            replace(SETTINGS, max_skipped=2),
            tmp_path,
            resume=False,
            label="test",
        )


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_without_an_average_the_latest_weights_are_what_a_run_is_for(tmp_path: Path) -> None:
    settings = replace(SETTINGS, ema_decay=0.0)
    model = make_model()
    assert train(model, Numbers(), loss, settings, tmp_path, resume=False, label="test") is model
    kept = tensors(tmp_path / "checkpoints/step-00000012.safetensors")
    assert not [name for name in kept if name.startswith("model.average.")]
    averaged = replace(SETTINGS, ema_decay=1e-9)
    other = train(make_model(), Numbers(), loss, averaged, tmp_path / "other", resume=False, label="test")
    torch.testing.assert_close(model.state_dict(), other.state_dict())


def test_the_log_has_the_means_and_what_was_skipped(tmp_path: Path) -> None:
    run(tmp_path, batches=Numbers(bad=5))
    told = rows(tmp_path)
    assert [row["step"] for row in told] == [4, 8, 12]
    assert [row["skipped"] for row in told] == [0, 1, 1]
    assert all(row["loss"] > 0 and row["seconds_per_step"] > 0 for row in told)


def test_a_log_without_numbers_is_still_json(tmp_path: Path) -> None:
    log = Log(tmp_path, 0, silent=False)
    log.add({"accuracy": float("nan")})
    log.write_means(1, {})
    log.close()
    assert rows(tmp_path)[0]["accuracy"] is None


def test_tensorboard_is_told_too_and_can_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        log = Log(tmp_path / name, 0, silent=False)
        log.write(3, {"loss": 0.5, "picture": torch.zeros(3, 4, 4)})
        log.close()
        assert rows(tmp_path / name) == [{"step": 3, "loss": 0.5}]
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = accumulator.EventAccumulator(str(tmp_path / "with/tensorboard")).Reload()
    assert [(event.step, event.value) for event in told.Scalars("loss")] == [(3, 0.5)]
    assert told.Images("picture")[0].width == 4
    assert not (tmp_path / "without/tensorboard").exists()


def test_validation_sees_the_average_and_changes_nothing(tmp_path: Path) -> None:
    settings = replace(SETTINGS, validation_steps=6, log_steps=100)
    seen = {}

    def validate(average: nn.Module, step: int) -> dict[str, float]:
        assert not average.training
        torch.manual_seed(5)  # what a validation draws with must not matter to the training
        seen[step] = {name: tensor.clone() for name, tensor in average.state_dict().items()}
        return {"validation/score": float(step)}

    last = train(
        make_model(),
        Numbers(),
        loss,
        settings,
        tmp_path / "one",
        resume=False,
        label="test",
        validate=validate,
    )
    assert_same(last.state_dict(), run(tmp_path / "other"))
    assert_same(seen[12], last.state_dict())
    written = rows(tmp_path / "one")
    assert [row["step"] for row in written if "loss" in row] == [12], "a short run has a line, too"
    assert [row["validation/score"] for row in written if "validation/score" in row] == [0, 6, 12]


def one_step(out: Path, **changes: object) -> dict[str, Tensor]:
    """The changes of the weights in a step of a deterministic loss."""

    def plain(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (model(batch["x"]) - batch["x"]).square().mean()}

    settings = replace(SETTINGS, steps=1, warmup_steps=0, decay_steps=0, **changes)  # type: ignore[arg-type]
    after = train(make_model(), Numbers(), plain, settings, out, resume=False, label="test").state_dict()
    return {name: after[name] - tensor for name, tensor in make_model().state_dict().items()}


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path: Path) -> None:
    whole, parts = (one_step(tmp_path / str(n), micro_batches=n, log_steps=1) for n in (1, 4))
    for name, moved in whole.items():
        torch.testing.assert_close(parts[name], moved, rtol=1e-4, atol=1e-7)
    # AdamW's first step hides how long a gradient is.
    for name in ("loss", "grad_norm"):
        assert rows(tmp_path / "4")[0][name] == pytest.approx(rows(tmp_path / "1")[0][name], rel=1e-5)


def test_parts_are_the_batch_in_its_order() -> None:
    class Tokens(NamedTuple):
        ids: Tensor

    batch = {"x": torch.arange(8), "tokens": [Tokens(torch.arange(8) * 2), Tokens(torch.arange(8) * 3)]}
    parts = [cut(batch, index, 4) for index in range(4)]
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [part["tokens"][1].ids.tolist() for part in parts] == [[0, 3], [6, 9], [12, 15], [18, 21]]
    with pytest.raises(InputError, match="a batch of 8 cannot be divided into 3"):
        cut(batch, 0, 3)


def test_clipping_is_applied(tmp_path: Path) -> None:
    # AdamW's first step hides a gradient's length as long as it is large beside epsilon, 1e-8.
    free, clipped = (one_step(tmp_path / str(norm), max_grad_norm=norm) for norm in (100.0, 1e-8))
    assert free["0.weight"].abs().max() > 2 * clipped["0.weight"].abs().max() > 0


def test_a_spike_never_reaches_the_weights(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=14, spike_factor=10.0)

    def spiking(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        factor = 1e4 if batch["x"].equal(Numbers()[12]["x"]) else 1.0
        return {"loss": factor * loss(model, batch)["loss"]}

    def after(name: str, asked: Callable, steps: int) -> dict[str, Tensor]:
        out = tmp_path / name
        train(make_model(), Numbers(), asked, settings, out, resume=False, label="test")
        return tensors(out / f"checkpoints/step-{steps:08d}.safetensors")

    spike = after("spike", spiking, 14)
    assert spike["model.guard"][0] == 1 and after("calm", loss, 14)["model.guard"][0] == 0
    assert spike["model.average.updates"] == 13

    with pytest.raises(InputError, match=r"longer than 10\.0 times the median, 3 steps in a row"):
        guard = Guard(replace(settings, max_skipped=2))
        for norm in [1.0] * 12 + [11.0] * 3:
            guard.lets_through(norm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamw8bit"}, "did you mean 'adamw-8bit'"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"micro_batches": 3}, "batch_size must be a multiple of micro_batches, got 8 and 3"),
        ({"spike_factor": 1.0}, "spike_factor is 1.0: it must be a number from 1.001"),
        ({"fsdp": True, "muon_rate": 0.01}, "adamw only"),
        ({"fsdp": True, "optimizer": "adafactor"}, "adamw only"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "named"), [("accelerate", "accelerate"), ("bitsandbytes", "bitsandbytes")]
)
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, named: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"pip install .*{'train' if named == 'accelerate' else named}"):
        run(tmp_path, settings=replace(SETTINGS, optimizer="adamw-8bit"))


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="steps is 0: it must be a whole number from 1 to"):
        replace(SETTINGS, steps=0)


def test_a_process_that_nobody_else_was_started_with_is_alone() -> None:
    assert accelerator("cpu").num_processes == 1


def test_sixteen_bits_compute_but_thirty_two_learn() -> None:
    model = make_model()
    output = computing_in(torch.bfloat16, model)(torch.randn(2, 4).bfloat16())
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
