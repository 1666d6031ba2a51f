"""The methods whose student follows its teacher's trajectory: one learner and one loss each."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ssd1b.distill.steps.matching import DistributionMatching
from ssd1b.distill.steps.setup import Given, Setup
from ssd1b.distill.steps.stages import StepStage
from ssd1b.distill.steps.trajectory import CLEAN, Estimate, Trajectory, spread
from ssd1b.training.batches import LatentBatch
from ssd1b.training.objective import noised
from ssd1b.training.processes import Loss
from ssd1b.training.task import Learner, Task

HUBER = 0.001
"""The constant of the pseudo-Huber loss, as in the reference script of latent consistency models."""

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""Constants of the boundary condition, as in the reference script of latent consistency models."""


def guidance(setup: Setup) -> Task[LatentBatch]:
    """Predict in one pass what the teacher predicts with guidance in two (2210.03142, section 3.1)."""

    def loss(module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        given = setup.given(batch)
        noisy = noised(setup.trajectory.schedule, given.clean)
        scales = setup.scales(len(given.clean), given.clean.device)
        target = setup.by_teacher(noisy.latents, noisy.timesteps, given, scales)
        predicted = setup.by_student(module, noisy.latents, noisy.timesteps, given, scales)
        errors = _squared(predicted.noise, target.noise)
        return {"loss": (errors * noisy.weights).mean(), "noise_mse": errors.mean()}

    return _learner(setup, loss)


def progressive(setup: Setup) -> Task[LatentBatch]:
    """Take in one DDIM step what the teacher takes in several (2202.00512, algorithm 2).

    The student's grid is ``trailing`` with the stage's number of steps. The target is the clean image to
    which one step must aim to arrive where the teacher does. Its error has the paper's truncated weight,
    max(SNR, 1), equation 9.

    Steps begin at noised images, one for each image. With ``starts = "noise"`` the guided teacher draws an
    image from noise for each caption, and the student learns all of its steps: guided images pass through
    other latents than noised ones. With ``starts = "student"`` the student draws the image, and learns in
    each step what the teacher would do from there, so that it corrects its own errors ("backward
    distillation", 2405.05224, section 3.1).
    """
    trajectory, stage = setup.trajectory, setup.stage
    grid = trajectory.grid(stage.inference_steps, "trailing")

    def taught(noisy: Tensor, start: Tensor, end: Tensor, given: Given, scales: Tensor) -> Tensor:
        """Return where the teacher arrives."""
        here = start
        for number in range(1, stage.teacher_steps + 1):
            there = (start + (end - start) * number / stage.teacher_steps).round().long()
            noisy = trajectory.at(setup.by_teacher(noisy, here, given, scales), there)
            here = there
        return noisy

    @torch.no_grad()
    def own(
        module: nn.Module, noisy: Tensor, start: Tensor, end: Tensor, given: Given, scales: Tensor
    ) -> Tensor:
        """Return where the student arrives."""
        return trajectory.at(setup.by_student(module, noisy, start, given, scales), end)

    def loss(module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        given = setup.given(batch)
        count, points = len(given.clean), grid.to(given.clean.device)
        scales = setup.scales(count, given.clean.device)
        if stage.starts == "images":
            index = spread(count, len(points) - 1, points.device)
            noisy = trajectory.noisy(given.clean, points[index])
            arrived = taught(noisy, points[index], points[index + 1], given, scales)
        else:
            drawn = taught if stage.starts == "noise" else partial(own, module)
            path = [torch.randn_like(given.clean)]
            for start, end in pairwise(points):
                path.append(drawn(path[-1], start.expand(count), end.expand(count), given, scales))
            index = torch.arange(len(points) - 1, device=points.device).repeat_interleave(count)
            given, scales = given.repeated(len(points) - 1), scales.repeat(len(points) - 1)
            noisy, arrived = torch.cat(path[:-1]), torch.cat(path[1:])
            if stage.starts == "student":
                arrived = taught(noisy, points[index], points[index + 1], given, scales)
        (alpha, sigma), (alpha_end, sigma_end) = map(trajectory.levels, (points[index], points[index + 1]))
        ratio = sigma_end / sigma
        target = (arrived - ratio * noisy) / (alpha_end - ratio * alpha)
        predicted = setup.by_student(module, noisy, points[index], given, scales)
        errors = _squared(predicted.clean, target)
        weights = ((alpha / sigma).square().flatten()).clamp(min=1)
        return {"loss": (errors * weights).mean(), "clean_mse": errors.mean()}

    return _learner(setup, loss)


def lcm(setup: Setup) -> Task[LatentBatch]:
    """Agree with oneself across a step of the teacher: latent consistency (2310.04378, algorithm 1).

    A step covers one interval of the solver's grid, 20 timesteps of 1000 for 50 solver steps ("skipping").
    The teacher steps with guidance. The averaged student gives the target, and is the result.
    """

    def jump(
        module: nn.Module, x: Tensor, start: Tensor, end: Tensor, given: Given, scales: Tensor
    ) -> Tensor:
        estimate = setup.by_student(module, x, start.clamp(min=0), given, scales)
        return bounded(x, start, estimate)

    return _consistent(setup, jump, lambda index, grid: torch.full_like(index, CLEAN))


def bounded(x: Tensor, timesteps: Tensor, estimate: Estimate) -> Tensor:
    """Meet the boundary condition: at the clean end a consistency function returns its input.

    2310.04378, equation 9, with the reference script's constants.
    """
    scaled = (TIMESTEP_SCALING * timesteps.clamp(min=0).float())[:, None, None, None]
    skip = SIGMA_DATA**2 / (scaled.square() + SIGMA_DATA**2)
    out = scaled / (scaled.square() + SIGMA_DATA**2).sqrt()
    return skip * x + out * estimate.clean


def tcd(setup: Setup) -> Task[LatentBatch]:
    """Agree with oneself at every later point: trajectory consistency (2402.19159, section 4.1).

    The student's jump is a DDIM step, exact at the boundary without further scaling. It ends at a point drawn
    between the teacher's step and the clean end, or, with ``ends = "phases"``, at the end of its phase
    (2405.18407), of which there are as many as inference steps.
    """
    stage, trajectory = setup.stage, setup.trajectory
    visited = consistency_grid(trajectory, stage)
    edges = torch.cat([visited, torch.tensor([CLEAN])])

    def jump(
        module: nn.Module, x: Tensor, start: Tensor, end: Tensor, given: Given, scales: Tensor
    ) -> Tensor:
        estimate = setup.by_student(module, x, start.clamp(min=0), given, scales)
        arrived = (start == end)[:, None, None, None]
        return torch.where(arrived, x, trajectory.at(estimate, end))

    def ends(after: Tensor, grid: Tensor) -> Tensor:
        if stage.ends == "phases":  # the first edge at or below the point
            below = edges.to(after.device)[None] <= grid[after][:, None]
            return edges.to(after.device)[below.int().argmax(dim=1)]
        left = len(grid) - after
        return grid[after + (torch.rand(len(after), device=after.device) * left).long()]

    return _consistent(setup, jump, ends)


def consistency_grid(trajectory: Trajectory, stage: StepStage) -> Tensor:
    """Return the timesteps that a consistency model of a stage visits, ``[inference_steps]``.

    They are evenly spaced among those of the solver, on which it was trained.
    """
    solver, count = stage.solver_steps, stage.inference_steps
    return trajectory.grid(solver, "trailing")[[index * solver // count for index in range(count)]]


Jump = Callable[[nn.Module, Tensor, Tensor, Tensor, Given, Tensor], Tensor]
"""``jump(module, x, start, end, given, scales)`` -> latents at ``end``."""


def _consistent(setup: Setup, jump: Jump, ends: Callable[[Tensor, Tensor], Tensor]) -> Task[LatentBatch]:
    """Make the learner of a consistency: the jump from a point equals that from the teacher's next point.

    Args:
        setup: networks and settings.
        jump: the consistency function.
        ends: chooses timesteps to jump to from the grid, given the index of the teacher's next points.
    """
    trajectory = setup.trajectory
    grid = trajectory.grid(setup.stage.solver_steps, "trailing")

    def loss(module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        given = setup.given(batch)
        device = given.clean.device
        points = grid.to(device)
        index = spread(len(given.clean), len(points) - 1, device)
        start, after = points[index], points[index + 1]
        end = ends(index + 1, points)
        scales = setup.scales(len(index), device)
        noisy = trajectory.noisy(given.clean, start)
        stepped = trajectory.at(setup.by_teacher(noisy, start, given, scales), after)
        with torch.no_grad():
            jumped = jump(learner.average.module, stepped, after, end, given, scales)
            # At the end of the jump the consistency function returns its input.
            target = torch.where((after == end)[:, None, None, None], stepped, jumped)
        predicted = jump(module, noisy, start, end, given, scales)
        return {"loss": _distance(predicted, target, setup.stage.loss)}

    learner = _learner(setup, loss)
    return learner


def _distance(ours: Tensor, theirs: Tensor, name: str) -> Tensor:
    squared = (ours - theirs).square()
    return squared.mean() if name == "l2" else ((squared + HUBER**2).sqrt() - HUBER).mean()


def _squared(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().flatten(1).mean(dim=1)


def _learner(setup: Setup, loss: Loss[LatentBatch]) -> Learner[LatentBatch]:
    return Learner(setup.student, loss, setup.stage.train, setup.processes)


METHODS: Mapping[str, Callable[[Setup], Task[LatentBatch]]] = {
    "guidance": guidance,
    "progressive": progressive,
    "lcm": lcm,
    "tcd": tcd,
    "dmd": DistributionMatching,
}
"""Each makes the task of a stage, whose first learner is the student."""
