"""Step distillation on a Gaussian, whose denoiser and flow are known: each method finds what it promises.

Images are normal with mean ``MEAN`` and deviation ``DEVIATION`` in every cell. A student has its own two
numbers for each timestep, so it can represent every solution exactly.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.distill.steps.methods import METHODS
from ssd1b.distill.steps.setup import Conditions, Given, Setup
from ssd1b.distill.steps.stages import StepStage
from ssd1b.distill.steps.trajectory import Trajectory
from ssd1b.models.text import Conditioning
from ssd1b.training.batches import LatentBatch
from ssd1b.training.loop import run
from ssd1b.training.processes import Processes
from ssd1b.training.settings import LoopSettings

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
        student=Affine(), teacher=(teacher or Affine()).requires_grad_(False), critic=Affine(), given=given,
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
    for start, end in zip(grid[:-1], grid[1:], strict=True):
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


def deviations(x: Tensor) -> tuple[float, float]:
    return float(x.mean()), float(x.std())


def error(student: nn.Module, grid: Tensor, **how: Any) -> float:
    x = torch.randn(256, 4, 2, 2, generator=torch.Generator().manual_seed(9))
    return float((sampled(student, grid, fresh=False, **how) - flow(x)).square().mean().sqrt())
