"""Tasks: two optimisers in turn, a loss that sees the average, an adapter; all of them resume bit by bit."""

import copy
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from killing import kill_often, kills_in_child
from ssd1b.training import loop
from ssd1b.training.loop import run
from ssd1b.training.optimizers import Optimizers
from ssd1b.training.precision import computing_in, convert_frozen
from ssd1b.training.processes import Processes
from ssd1b.training.settings import LoopSettings
from ssd1b.training.task import Learner, Task, Terms
from ssd1b.training.trained import Average, trained_parameters

pytestmark = pytest.mark.usefixtures("read_in_process")

SETTINGS = LoopSettings(
    steps=12, batch_size=8, micro_batches=2, learning_rate=1e-2, warmup_steps=2, decay_steps=4,
    checkpoint_steps=3, log_steps=4, ema_decay=0.9, seed=3,
)  # fmt: skip
OFTEN = replace(SETTINGS, checkpoint_steps=1, log_steps=1)
LAST = "checkpoints/step-00000012.safetensors"


class Numbers:
    def __getitem__(self, step: int) -> Tensor:
        return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def network(seed: int, *, out: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, out))


class Alternating:
    """A student and a critic with optimisers of their own; the student moves in every third step alone."""

    def __init__(self, processes: Processes, settings: LoopSettings) -> None:
        fast = replace(settings, learning_rate=3e-2, ema_decay=0.0, seed=settings.seed + 1, muon_rate=1e-3)
        self.student = Learner(network(0), self.student_loss, settings, processes)
        self.critic = Learner(network(1, out=1), self.critic_loss, fast, processes)
        self.learners = {"student": self.student, "critic": self.critic}

    def update(self, step: int, parts: Sequence[Tensor]) -> Terms:
        terms = {f"critic/{name}": value for name, value in self.critic.update(step, parts).items()}
        return {**terms, **self.student.update(step, parts)} if step % 3 == 2 else terms

    def student_loss(self, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        # Gradients pass through the critic, and must not move it.
        return {"loss": self.critic.model(model(x + torch.randn_like(x))).square().mean()}

    def critic_loss(self, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            made = self.student.model(torch.randn_like(x))
        return {"loss": (model(x) - 1).square().mean() + (model(made) + 1).square().mean()}


def seeing_the_average(processes: Processes, settings: LoopSettings) -> Learner[Tensor]:
    """Consistency training: the target is what the averaged model says of the same input with less noise."""

    def loss(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        noise = torch.randn_like(x)
        with torch.no_grad():
            target = learner.average.module(x + 0.1 * noise)
        return {"loss": (model(x + noise) - target).square().mean()}

    learner = Learner(network(0), loss, settings, processes)
    return learner


class Adapted(nn.Module):
    """A frozen network with two small trained matrices beside its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base = network(0).requires_grad_(False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 8, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.base
        hidden = first(x) + self.up(self.down(x))
        for layer in rest:
            hidden = layer(hidden)
        return hidden


def reconstruction(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"loss": (model(x + torch.randn_like(x)) - x).square().mean()}


def adapter(processes: Processes, settings: LoopSettings) -> Learner[Tensor]:
    return Learner(Adapted(), reconstruction, settings, processes)


TASKS: Mapping[str, Callable[[Processes, LoopSettings], Task[Tensor]]] = {
    "alternating": Alternating,
    "seeing the average": seeing_the_average,
    "adapter": adapter,
}


def go(name: str, out: Path, settings: LoopSettings = SETTINGS, *, resume: bool = False) -> Task[Tensor]:
    processes = Processes(torch.device("cpu"), settings)
    task = TASKS[name](processes, settings)
    run(task, Numbers(), settings, processes, out, resume=resume, label="test")
    return task


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("name", TASKS)
def test_a_stopped_task_goes_on_bit_by_bit(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(name, tmp_path / "whole")
    update, steps = Learner.update, []

    def stopping(self: Learner, step: int, parts: Sequence[Tensor]) -> Terms:
        if step == 5 and not steps:
            steps.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, step, parts)

    monkeypatch.setattr(Learner, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        go(name, tmp_path / "cut")
    assert not (tmp_path / "cut" / LAST).exists()
    go(name, tmp_path / "cut", resume=True)
    assert_same(load_file(tmp_path / "cut" / LAST), load_file(tmp_path / "whole" / LAST))


def killed_often(folder: str) -> None:
    """The work of the next test's child process, which imports torch once for all tasks."""
    loop._read_ahead = lambda share, start, stop, _: (share[i] for i in range(start, stop))  # type: ignore
    for name in TASKS:
        out = Path(folder) / name
        go(name, out / "whole", OFTEN)
        with (out / "lives").open("w") as lives, redirect_stdout(lives):
            kill_often(lambda out, name=name: go(name, out, OFTEN, resume=True), out / "cut", LAST)


def test_a_task_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    kills_in_child(__file__, f"killed_often({str(tmp_path)!r})")
    for name in TASKS:
        out = tmp_path / name
        assert (out / "lives").read_text().split().count(str(-signal.SIGKILL)) >= 2, name
        assert_same(load_file(out / "cut" / LAST), load_file(out / "whole" / LAST))


def test_learners_take_turns_and_the_log_has_the_means_of_the_steps_that_have_a_term(tmp_path: Path) -> None:
    task = go("alternating", tmp_path, replace(SETTINGS, log_steps=2))
    assert isinstance(task, Alternating)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert ["loss" in row for row in rows] == [False, True, True, False, True, True]
    assert all({"critic/loss", "critic/grad_norm", "skipped"} <= row.keys() for row in rows)
    kept = load_file(tmp_path / LAST)
    assert {name.split(".")[0] for name in kept} == {"student", "critic"}
    assert kept["student.average.updates"] == 4
    assert not [name for name in kept if name.startswith("critic.average")]
    assert kept["critic.optimizer.2.bias.step"] == 12 and kept["student.optimizer.2.bias.step"] == 4


def test_a_loss_moves_its_own_learner_alone(tmp_path: Path) -> None:
    processes = Processes(torch.device("cpu"), SETTINGS)
    task = Alternating(processes, SETTINGS)
    parts = list(Numbers()[0].chunk(2))
    before = copy.deepcopy(task.critic.model.state_dict())
    task.student.update(0, parts)
    assert_same(task.critic.model.state_dict(), before)
    assert any(each.grad is not None for each in task.critic.model.parameters()), "it leaves gradients there"
    task.critic.update(0, parts)
    alone = Alternating(processes, SETTINGS)
    alone.student.model.load_state_dict(task.student.model.state_dict())
    alone.critic.update(0, parts)
    assert_same(task.critic.model.state_dict(), alone.critic.model.state_dict())


def test_learners_of_one_step_have_random_numbers_of_their_own() -> None:
    drawn = []

    def loss(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        drawn.append(torch.randn(()).item())
        return reconstruction(model, x)

    processes = Processes(torch.device("cpu"), SETTINGS)
    for seed in (0, 1, 0):
        Learner(network(0), loss, replace(SETTINGS, seed=seed), processes).update(0, Numbers()[0].chunk(2))
    assert len(set(drawn)) == 4 and drawn[:2] == drawn[4:]


TRAINED = {"down.weight", "up.weight"}


def test_of_an_adapter_only_the_trained_parameters_are_kept(tmp_path: Path) -> None:
    task = go("adapter", tmp_path)
    assert isinstance(task, Learner)
    kept = load_file(tmp_path / LAST)
    groups: dict[str, set[str]] = {}
    for name in kept:
        _, group, *rest = name.split(".", 2)
        groups.setdefault(group, set()).update(rest)
    assert groups["weights"] == TRAINED
    assert groups["average"] == {*TRAINED, "updates"}
    assert groups["optimizer"] == {f"{n}.{key}" for n in TRAINED for key in ("step", "exp_avg", "exp_avg_sq")}
    assert groups.keys() == {"weights", "average", "optimizer", "guard"}
    (optimizer, _, names), *others = task._optimizers._optimizers
    assert set(names) == TRAINED and not others
    assert len(optimizer.state) == 2


def test_frozen_parameters_never_change_and_are_there_once(tmp_path: Path) -> None:
    task = go("adapter", tmp_path)
    assert isinstance(task, Learner)
    averaged = dict(task.averaged().named_parameters())
    for name, parameter in task.model.named_parameters():
        shared = averaged[name].data_ptr() == parameter.data_ptr()
        assert shared == (name not in TRAINED), name
    assert_same(task.model.get_submodule("base").state_dict(), network(0).state_dict())
    assert task.model.get_parameter("up.weight").any()


def test_weight_decay_and_muon_leave_frozen_parameters_alone(tmp_path: Path) -> None:
    settings = replace(SETTINGS, weight_decay=1.0, muon_rate=1e-2, muon_decay=1.0)
    task = go("adapter", tmp_path, settings)
    assert isinstance(task, Learner)
    assert_same(task.model.get_submodule("base").state_dict(), network(0).state_dict())


def test_a_model_of_which_nothing_is_trained_is_an_error() -> None:
    with pytest.raises(AssertionError, match="requires gradients"):
        Optimizers(network(0).requires_grad_(False), SETTINGS)


def test_the_average_copies_buffers_and_follows_the_decay() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1, bias=False))
    average = Average(model, 0.5)
    weights = []
    for step in range(4):
        weights.append(float(step))
        model[1].weight.data.fill_(step)
        model(torch.randn(8, 1))
        average.update(model)
    # The first update copies; then the decay rises as (1 + step) / (10 + step) up to 0.5.
    expected = weights[0]
    for step in (1, 2, 3):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights[step]
    assert average.module[1].weight.item() == pytest.approx(expected)  # type: ignore[index]
    assert average.module[0].running_mean.equal(model[0].running_mean)  # type: ignore[index]
    assert not average.module.training


def test_frozen_parameters_are_rounded_once() -> None:
    model = Adapted()
    with pytest.raises(RuntimeError, match="dtype"):
        computing_in(torch.bfloat16, model)(torch.randn(2, 4).bfloat16())
    exact = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    convert_frozen(model, torch.bfloat16)
    frozen = {each.data_ptr() for each in model.base.parameters()}
    outs = computing_in(torch.bfloat16, model)(torch.randn(2, 4).bfloat16())
    outs.sum().backward()
    assert outs.dtype == torch.bfloat16 and {each.data_ptr() for each in model.base.parameters()} == frozen
    assert all(each.equal(exact[name].bfloat16()) for name, each in model.base.state_dict().items())
    trained = trained_parameters(model)
    assert trained.keys() == TRAINED
    assert all(each.grad is not None and each.dtype == torch.float32 for each in trained.values())
