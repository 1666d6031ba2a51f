"""Step distillation on a Gaussian, whose denoiser and flow are known: each method finds what it promises.

Images are normal with mean ``MEAN`` and deviation ``DEVIATION`` in every cell. A student has its own two
numbers for each timestep, so it can represent every solution exactly.
"""

import copy
import re
import signal
from contextlib import redirect_stdout
from dataclasses import fields, replace
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from killing import kill_often, kills_in_child
from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.distill.stages import read_stages
from ssd1b.distill.steps.methods import METHODS, bounded, consistency_grid
from ssd1b.distill.steps.names import METHOD_NAMES
from ssd1b.distill.steps.setup import Conditions, Given, Setup
from ssd1b.distill.steps.stages import USED_BY, StepStage, read_step_stages, with_total_steps
from ssd1b.distill.steps.trajectory import CLEAN, Estimate, Trajectory, spread
from ssd1b.errors import InputError
from ssd1b.models.text import Conditioning
from ssd1b.training import loop
from ssd1b.training.batches import LatentBatch
from ssd1b.training.loop import run
from ssd1b.training.processes import Processes
from ssd1b.training.settings import LoopSettings
from ssd1b.training.task import Learner

pytestmark = pytest.mark.usefixtures("read_in_process")

MEAN, DEVIATION = 2.0, 0.5
SCHEDULE = NoiseSchedule()
TRAJECTORY = Trajectory(schedule=SCHEDULE)
SETTINGS = LoopSettings(
    steps=300, batch_size=64, learning_rate=0.02, warmup_steps=5, decay_steps=200, decay="cosine",
    weight_decay=0.0, ema_decay=0.8, checkpoint_steps=1000, log_steps=100, max_grad_norm=1e6, seed=3,
)  # fmt: skip


class Affine(nn.Module):
    """Predict ``slope[t] x + shift[t] + text``; at first the exact noise of the Gaussian, where text is 0."""

    def __init__(self, mean: float = MEAN) -> None:
        super().__init__()
        alpha, sigma = TRAJECTORY.levels(torch.arange(1000))
        variance = alpha**2 * DEVIATION**2 + sigma**2
        self.slope = nn.Parameter((sigma / variance).flatten())
        self.shift = nn.Parameter((-sigma * alpha * mean / variance).flatten())

    def forward(self, x: Tensor, timesteps: Tensor, embeds: Tensor, pooled: Tensor, ids: Tensor) -> Tensor:
        t = timesteps.long()
        noise = self.slope[t, None, None, None] * x + self.shift[t, None, None, None]
        return noise + pooled[:, :1, None, None]


class Gaussian(nn.Module):
    """The exact prediction for a Gaussian whose mean and deviation are learned, as a critic can."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.deviation = (nn.Parameter(torch.tensor(each)) for each in (MEAN, DEVIATION))

    def forward(self, x: Tensor, timesteps: Tensor, *others: Tensor) -> Tensor:
        alpha, sigma = TRAJECTORY.levels(timesteps)
        return sigma * (x - alpha * self.mean) / (alpha**2 * self.deviation**2 + sigma**2)


class Images:
    """Batches of the Gaussian; the pooled text, which shifts predictions, is ``text``."""

    def __init__(self, text: float = 0.0) -> None:
        self.text = text

    def __getitem__(self, step: int) -> LatentBatch:
        noise = torch.randn(64, 4, 2, 2, generator=torch.Generator().manual_seed(step))
        text = Conditioning(torch.zeros(64, 1, 1), torch.full((64, 1), self.text))
        return LatentBatch(MEAN + DEVIATION * noise, text, torch.zeros(64, 6), torch.ones(64).bool())


def given(batch: LatentBatch) -> Given:
    assert isinstance(batch.text, Conditioning)
    embeds, pooled = batch.text
    empty = Conditions(torch.zeros_like(embeds), torch.zeros_like(pooled), batch.time_ids)
    return Given(batch.latents, Conditions(embeds, pooled, batch.time_ids), empty)


def setup(stage: StepStage, teacher: nn.Module | None = None) -> Setup:
    return Setup(
        student=Affine(), teacher=(teacher or Affine()).requires_grad_(False), critic=Gaussian(), given=given,
        trajectory=TRAJECTORY, stage=stage, processes=Processes(torch.device("cpu"), stage.train),
        dtype=torch.float32,
    )  # fmt: skip


def trained(out: Path, stage: StepStage, *, text: float = 0.0, start: nn.Module | None = None) -> nn.Module:
    """The student after a stage."""
    made = setup(stage)
    if start is not None:
        made.student.load_state_dict(start.state_dict())
    task = METHODS[stage.method](made)
    run(task, Images(text), stage.train, made.processes, out, resume=False, label="test")
    return next(iter(task.learners.values())).averaged()


@torch.no_grad()
def sampled(student: nn.Module, grid: Tensor, *, fresh: bool, text: float = 0.0) -> Tensor:
    """Generate 4096 cells on a grid, by DDIM or, ``fresh``, by jumps and new noise."""
    count = 256
    x = torch.randn(count, 4, 2, 2, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(10)
    empty = torch.zeros(count, 1, 1), torch.full((count, 1), text), torch.zeros(count, 6)
    for start, end in pairwise(grid):
        times, ends = start.expand(count), end.expand(count)
        estimate = TRAJECTORY.estimate(x, times, student(x, times.float(), *empty))
        if fresh:
            estimate = estimate._replace(noise=torch.randn(x.shape, generator=generator))
        x = TRAJECTORY.at(estimate, ends)
    return x


def flow(x: Tensor) -> Tensor:
    """The exact end of the teacher's trajectory from ``x`` at the top."""
    alpha, sigma = TRAJECTORY.levels(torch.tensor([999]))
    return MEAN + DEVIATION * (x - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2).sqrt()


def moments(x: Tensor) -> tuple[float, float]:
    return float(x.mean()), float(x.std())


def error(student: nn.Module, grid: Tensor) -> float:
    x = torch.randn(256, 4, 2, 2, generator=torch.Generator().manual_seed(9))
    return float((sampled(student, grid, fresh=False) - flow(x)).square().mean().sqrt())


TRAILING = TRAJECTORY.grid(4, "trailing")
ONE = TRAJECTORY.grid(1, "trailing")


def slow(**changes: object) -> LoopSettings:
    return replace(SETTINGS, learning_rate=3e-3, **changes)  # type: ignore[arg-type]


def test_guidance_goes_into_the_weights(tmp_path: Path) -> None:
    """The text adds a number to the noise. Guided by 3 it is three times as large, in one pass."""
    stage = StepStage(method="guidance", guidance=3.0, train=replace(SETTINGS, steps=150, decay_steps=100))
    student = trained(tmp_path, stage, text=0.1)
    x, times = torch.zeros(10, 4, 2, 2), torch.arange(50.0, 1000.0, 100.0)
    pooled = torch.full((10, 1), 0.1), torch.zeros(10, 6)
    added = [each(x, times, torch.zeros(10, 1, 1), *pooled) for each in (student, Affine())]
    assert float((added[0] - added[1]).detach().mean()) == pytest.approx(0.2, abs=0.05)


def test_one_step_arrives_where_the_teachers_steps_do(tmp_path: Path) -> None:
    """Four exact DDIM steps end 0.23 beside the trajectory's end."""
    settings = replace(SETTINGS, steps=150, decay_steps=100)
    before = error(Affine(), TRAILING)
    many, single = (
        error(trained(tmp_path / str(count), StepStage(
            method="progressive", guidance=1.0, teacher_steps=count, train=settings
        )), TRAILING)
        for count in (6, 1)
    )  # fmt: skip
    assert many < 0.35 * before
    assert single == pytest.approx(before, rel=0.1), "with a single step there is nothing to learn"


@pytest.mark.parametrize("starts", ["noise", "student"])
def test_a_student_learns_the_steps_of_generated_images(tmp_path: Path, starts: str) -> None:
    """One draws images around 0, the other and the data around 2; all steps are learned where they pass."""
    stage = StepStage(
        method="progressive", guidance=1.0, teacher_steps=6, starts=starts,
        train=replace(SETTINGS, steps=150, decay_steps=100),
    )  # fmt: skip
    assert error(trained(tmp_path, stage), TRAILING) < 0.35 * error(Affine(), TRAILING)

    made = setup(stage, Affine(mean=0.0 if starts == "noise" else MEAN))
    if starts == "student":
        made.student.load_state_dict(Affine(mean=0.0).state_dict())
    seen = {}
    made.student.register_forward_pre_hook(
        lambda module, inputs: seen.update({
            int(t): float(inputs[0][inputs[1] == t].mean()) for t in inputs[1].unique()
        })
    )  # fmt: skip
    METHODS["progressive"](made).update(0, [Images()[0]])
    assert sorted(seen) == [249, 499, 749, 999], "all steps of each image are learned"
    assert all(abs(mean) < 0.15 for mean in seen.values())


def test_a_student_that_draws_is_brought_to_the_teachers_next_step() -> None:
    """From the student's latents, not from its own, the teacher steps; both agree where they are equal."""
    stage = StepStage(method="progressive", guidance=1.0, teacher_steps=1, starts="student", train=SETTINGS)
    losses = {}
    for mean in (MEAN, 1.0):
        made = setup(stage)
        made.student.load_state_dict(Affine(mean).state_dict())
        losses[mean] = float(METHODS["progressive"](made).update(0, [Images()[0]])["loss"])
    assert losses[MEAN] < 1e-8 < 0.1 < losses[1.0]


def test_a_consistency_model_jumps_to_the_end(tmp_path: Path) -> None:
    coarse, fine = (
        error(trained(tmp_path / str(count), StepStage(
            method="lcm", guidance=1.0, solver_steps=count, train=slow(steps=300, decay_steps=200)
        )), ONE)
        for count in (10, 50)
    )  # fmt: skip
    assert coarse < 0.4 * error(Affine(), ONE)
    assert coarse < 0.6 * fine, "skipping: larger steps of the teacher reach the end in fewer updates"


def test_a_student_comes_to_agree_with_itself_and_the_teacher_stays() -> None:
    stage = StepStage(method="lcm", guidance=1.0, solver_steps=10, train=slow(steps=100, decay_steps=50))
    made = setup(stage)
    task = METHODS["lcm"](made)
    assert isinstance(task, Learner)
    losses = [float(task.update(step, [Images()[step]])["loss"]) for step in range(100)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert all(torch.equal(*pair) for pair in zip(
        made.teacher.parameters(), Affine().parameters(), strict=True
    )), "the teacher stays"  # fmt: skip


def test_trajectory_consistency_in_phases_follows_the_trajectory(tmp_path: Path) -> None:
    stage = StepStage(
        method="tcd", guidance=1.0, solver_steps=20, ends="phases", loss="l2",
        train=slow(steps=300, decay_steps=200),
    )  # fmt: skip
    assert error(trained(tmp_path, stage), TRAILING) < 0.55 * error(Affine(), TRAILING)


def test_trajectory_consistency_ends_anywhere(tmp_path: Path) -> None:
    stage = StepStage(
        method="tcd", guidance=1.0, solver_steps=10, train=slow(steps=300, decay_steps=200)
    )  # fmt: skip
    student = trained(tmp_path, stage)
    for steps, better in ((1, 0.65), (2, 0.75)):
        grid = TRAJECTORY.grid(steps, "trailing")
        assert error(student, grid) < better * error(Affine(), grid), steps


MATCHING = StepStage(
    method="dmd", guidance=1.0, inference_steps=1, critic_updates=3, critic_rate=0.05,
    train=replace(SETTINGS, learning_rate=2e-3, steps=450, decay_steps=300),
)  # fmt: skip


def test_matching_distributions_needs_a_critic_that_keeps_up(tmp_path: Path) -> None:
    """At first all images of one step are alike: a deviation of 0.02 instead of 0.5."""
    student = trained(tmp_path / "with", MATCHING)
    still = trained(tmp_path / "still", replace(MATCHING, critic_rate=1e-10))
    mean, deviation = moments(sampled(student, ONE, fresh=True))
    assert mean == pytest.approx(MEAN, abs=0.15) and deviation == pytest.approx(DEVIATION, rel=0.25)
    assert moments(sampled(still, ONE, fresh=True))[1] < 0.5 * DEVIATION


def test_the_critic_moves_in_every_step_and_the_student_in_every_third() -> None:
    made = setup(MATCHING)
    task = METHODS["dmd"](made)
    moved = []
    for step in range(6):
        before = [copy.deepcopy(each.model.state_dict()) for each in task.learners.values()]
        task.update(step, [Images()[step]])
        after = [each.model.state_dict() for each in task.learners.values()]
        moved.append([any(not a[k].equal(b[k]) for k in a) for a, b in zip(after, before, strict=True)])
    assert moved == [[False, True], [False, True], [True, True]] * 2


@pytest.mark.parametrize("simulate", [True, False])
def test_backward_simulation_trains_at_the_students_own_latents(simulate: bool) -> None:
    """The student's images lie around 0, those of the data around 2."""
    made = setup(replace(MATCHING, inference_steps=2, simulate=simulate))
    student = Affine(mean=0.0)
    made.student.load_state_dict(student.state_dict())
    task = METHODS["dmd"](made)
    seen = {999: [], 499: []}
    made.student.register_forward_pre_hook(
        lambda module, inputs: seen[int(inputs[1][0])].append(float(inputs[0].mean()))
    )
    for step in range(12):
        task.update(step, [Images()[step]])
    alpha, _ = TRAJECTORY.levels(torch.tensor([499]))
    middle = sum(seen[499]) / len(seen[499])
    assert middle == pytest.approx(0.0 if simulate else float(alpha) * MEAN, abs=0.15)
    assert abs(sum(seen[999]) / len(seen[999])) < 0.05, "the top is noise alone"


# The trajectory


def test_the_top_is_noise_alone_and_the_clean_end_has_none() -> None:
    clean = torch.full((3, 4, 8, 8), 100.0)
    noisy = TRAJECTORY.noisy(clean, torch.tensor([999, 998, CLEAN]))
    assert abs(float(noisy[0].mean())) < 1 < float(noisy[1].mean())
    assert noisy[2].equal(clean[2])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_prediction_says_what_is_clean_and_what_is_noise(prediction: str) -> None:
    schedule = NoiseSchedule(prediction_type=prediction)
    trajectory, times = Trajectory(schedule=schedule), torch.tensor([10, 500])
    clean, noise = torch.randn(2, 2, 4, 3, 3)
    x = schedule.add_noise(clean, noise, times)
    found = trajectory.estimate(x, times, schedule.target(clean, noise, times))
    torch.testing.assert_close(found.clean, clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.noise, noise, atol=1e-4, rtol=0)
    torch.testing.assert_close(trajectory.at(found, times), x, atol=1e-4, rtol=0)
    assert trajectory.at(found, torch.full_like(times, CLEAN)).equal(found.clean)


def test_a_consistency_function_returns_its_input_at_the_clean_end() -> None:
    x, other = torch.randn(2, 2, 4, 3, 3)
    found = bounded(x, torch.tensor([CLEAN, 999]), Estimate(other, other))
    assert found[0].equal(x[0])
    torch.testing.assert_close(found[1], other[1], atol=1e-4, rtol=0)


def test_indices_are_spread_evenly() -> None:
    assert sorted(spread(8, 4, torch.device("cpu")).tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_consistency_model_visits_timesteps_of_its_solver() -> None:
    for solver, expected in ((50, [999, 759, 499, 259]), (20, [999, 749, 499, 249])):
        stage = StepStage(method="lcm", solver_steps=solver)
        assert consistency_grid(TRAJECTORY, stage).tolist() == expected


# Resuming

SHORT = replace(
    SETTINGS, steps=8, decay_steps=2, batch_size=64, micro_batches=2, checkpoint_steps=1, log_steps=1
)
LAST = "checkpoints/step-00000008.safetensors"


def go(method: str, out: Path, *, resume: bool = False) -> None:
    own = {"critic_updates": 2} if method == "dmd" else {}
    made = setup(StepStage(method=method, guidance=2.0, train=SHORT, **own))
    run(METHODS[method](made), Images(0.1), SHORT, made.processes, out, resume=resume, label="test")


def killed_often(folder: str) -> None:
    """The work of the next test's child process, which imports torch once for all methods."""
    loop._read_ahead = lambda share, start, stop, _: (share[i] for i in range(start, stop))  # type: ignore
    for method in METHOD_NAMES:
        out = Path(folder) / method
        go(method, out / "whole")
        with (out / "lives").open("w") as lives, redirect_stdout(lives):
            kill_often(lambda out, method=method: go(method, out, resume=True), out / "cut", LAST)


def test_a_method_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    kills_in_child(__file__, f"killed_often({str(tmp_path)!r})")
    for method in METHOD_NAMES:
        out = tmp_path / method
        assert (out / "lives").read_text().split().count(str(-signal.SIGKILL)) >= 2, method
        cut, whole = (load_file(out / each / LAST) for each in ("cut", "whole"))
        assert cut.keys() == whole.keys() and all(cut[name].equal(whole[name]) for name in cut), method


# Stages


def test_stages_are_read_with_their_defaults(tmp_path: Path) -> None:
    file = tmp_path / "turbo.toml"
    file.write_text(
        '[train]\nbatch_size = 8\n[[stages]]\nmethod = "lcm"\nguidance = 7.0\ntrain = { steps = 30 }\n'
        '[[stages]]\nmethod = "progressive"\nlearns_from = "before"\ninference_steps = 2\n'
    )
    first, second = read_step_stages(file)
    assert (first.scales, first.train.steps, first.train.batch_size) == ((7.0, 7.0), 30, 8)
    assert (second.scales, second.inference_steps, second.train.batch_size) == ((1.0, 1.0), 2, 8)
    assert [each.train.steps for each in with_total_steps([first, second], 203)] == [3, 200]


def test_the_guides_stages_are_valid(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs/guide/few-steps.md"
    texts = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "turbo.toml"
    methods = []
    for text in texts:
        file.write_text(text, encoding="utf-8")
        methods.append([each.method for each in read_step_stages(file)])
    assert methods == [["progressive", "progressive", "dmd"], ["tcd", "dmd"]]
    assert [each.student for each in read_stages(str(file))] == ["ssd-1b"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no stages with a method"),
        ("stages = 3", "has no stages with a method"),
        ('[[stages]]\nstudent = "50%"', "has no stages with a method"),
        ('[[stages]]\nmethod = "lmc"', "unknown method 'lmc': did you mean 'lcm'"),
        ('[[stages]]\nmethod = "lcm"\nguidence = 2.0', "guidance"),
        ('[[stages]]\nmethod = "lcm"\n[[stages]]\nstudent = "50%"', "stage 2 of .* has no method"),
        ('[[stages]]\nmethod = "lcm"\nlearns_from = "before"', "stage 1 learns from the one before"),
        ('[[stages]]\nmethod = "lcm"\nguidance = [9.0, 3.0]', "the first scale must be the smaller one"),
        (
            '[[stages]]\nmethod = "lcm"\nguidance = [3.0, 9.0]\n[[stages]]\nmethod = "tcd"',
            "either all stages",
        ),
        ('[[stages]]\nmethod = "lcm"\nsolver_steps = 4\ninference_steps = 8', "at most the 4 solver_steps"),
        ('[[stages]]\nmethod = "dmd"\ntrain = { steps = 4 }', "never update the student"),
        ('[[stages]]\nmethod = "lcm"\ninference_steps = 51', "inference_steps is 51"),
        (
            '[[stages]]\nmethod = "lcm"\nteacher_steps = 3',
            "stage 1 of .*: teacher_steps has no effect with the method lcm: it is for progressive",
        ),
        (
            '[[stages]]\nmethod = "progressive"\nloss = "huber"',
            "loss has no effect .* progressive: it is for lcm, tcd",
        ),
        ('[[stages]]\nmethod = "guidance"\ninference_steps = 4', "it is for progressive, lcm, tcd, dmd"),
        ('[[stages]]\nmethod = "lcm"\nguidance = 1.0\nguidance_rescale = 0.5', "this stage has none"),
    ],
)
def test_what_is_wrong_with_stages_is_said_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "turbo.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        read_step_stages(file)
    assert "\n" not in str(caught.value)


def test_every_setting_of_some_methods_is_refused_by_the_others() -> None:
    other: dict[str, object] = {
        "inference_steps": 3, "teacher_steps": 3, "starts": "noise", "solver_steps": 20, "ends": "phases",
        "loss": "l2", "critic_updates": 3, "critic_rate": 0.1, "critic": "student", "simulate": False,
    }  # fmt: skip
    assert other.keys() == USED_BY.keys() < {each.name for each in fields(StepStage)}
    for (name, value), method in product(other.items(), METHOD_NAMES):
        if method in USED_BY[name]:
            assert getattr(StepStage(method=method, **{name: value}), name) == value
        else:
            with pytest.raises(InputError, match=f"{name} has no effect with the method {method}"):
                StepStage(method=method, **{name: value})
