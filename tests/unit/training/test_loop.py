"""The training loop: what was stopped goes on unchanged, and nothing broken reaches the weights."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ssd1b.errors import InputError
from ssd1b.training import loop
from ssd1b.training.loop import Batch, LoopSettings, train
from ssd1b.training.precision import computing_in

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


@pytest.fixture(autouse=True)
def read_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a worker process for each of these runs costs more than the runs."""
    monkeypatch.setattr(
        loop, "_read_ahead", lambda batches, start, stop: (batches[step] for step in range(start, stop))
    )


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


def tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("settings", [SETTINGS, WITH_MUON], ids=["adamw", "muon"])
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path, number: int, settings: LoopSettings) -> None:
    whole = run(tmp_path / "whole", settings=settings)

    def stopping(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if batch["x"].equal(Numbers()[4]["x"]):
            os.kill(os.getpid(), number)
        return loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(make_model(), Numbers(), stopping, settings, tmp_path / "cut", resume=False, label="test")
    assert (tmp_path / "cut/checkpoints/step-00000005.safetensors").exists(), (
        "the step was finished, then saved"
    )
    assert_same(run(tmp_path / "cut", resume=True, settings=settings), whole)
    last = "checkpoints/step-00000012.safetensors"
    assert_same(tensors(tmp_path / "cut" / last), tensors(tmp_path / "whole" / last))


def slowly(out: Path) -> None:
    """What the child process of the next test does: a run that lasts long enough to be killed."""

    def slow_loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        time.sleep(0.2)
        return loss(model, batch)

    train(make_model(), Numbers(), slow_loss, WITH_MUON, out, resume=False, label="test")


@pytest.mark.parametrize(
    ("number", "left"), [(signal.SIGKILL, None), (signal.SIGTERM, "interrupted")], ids=["killed", "stopped"]
)
def test_a_whole_process_group_that_is_ended_leaves_a_run_that_goes_on_bit_by_bit(
    tmp_path: Path, number: int, left: str | None
) -> None:
    here = Path(__file__)
    script = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import pathlib, {here.stem}\n"
    script += f"try: {here.stem}.slowly(pathlib.Path({str(tmp_path / 'cut')!r}))\n"
    script += "except KeyboardInterrupt: print('interrupted')"
    child = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    checkpoints = tmp_path / "cut/checkpoints"
    while not (checkpoints / "step-00000003.safetensors").exists():
        assert child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(child.pid, number)  # the process that reads ahead is hit, too
    out, _ = child.communicate(timeout=60)
    assert out.strip() == (left or "")
    assert not (checkpoints / "step-00000012.safetensors").exists()
    whole = run(tmp_path / "whole", settings=WITH_MUON)
    assert_same(run(tmp_path / "cut", resume=True, settings=WITH_MUON), whole)


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "torn")
    newest = tmp_path / "torn/checkpoints/step-00000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert_same(run(tmp_path / "torn", resume=True), whole)


def test_the_checkpoint_before_the_decay_is_kept_so_that_a_run_can_be_prolonged(tmp_path: Path) -> None:
    run(tmp_path)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}.safetensors" for step in (8, 9, 12)]


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [SETTINGS.share(step) for step in range(SETTINGS.steps)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


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


def test_a_loss_that_stays_broken_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_SKIPPED", 2)

    def broken(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": model(batch["x"]).sum() * float("nan")}

    with pytest.raises(InputError, match="3 steps in a row"):
        train(make_model(), Numbers(), broken, SETTINGS, tmp_path, resume=False, label="test")


def test_the_log_has_the_means(tmp_path: Path) -> None:
    run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert all(row["loss"] > 0 and row["seconds_per_step"] > 0 for row in rows)


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        replace(SETTINGS, steps=0)


def test_sixteen_bits_compute_but_thirty_two_learn() -> None:
    model = make_model()
    output = computing_in(torch.bfloat16, model)(torch.randn(2, 4).bfloat16())
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
