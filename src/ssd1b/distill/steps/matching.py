"""Distribution matching: the student's images follow the teacher's distribution, image by image unlike it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.distill.steps.setup import Given, Setup
from ssd1b.training.batches import LatentBatch
from ssd1b.training.task import Learner, Terms

NOISE_RANGE = (0.02, 0.98)
"""Shares of the timesteps at which distributions are compared (2311.18828, section 4; 2405.14867)."""


class DistributionMatching:
    """DMD2 without its adversarial head (2405.14867).

    The gradient of the student's images is the difference of two scores: the guided teacher's, and that of a
    critic, which learns the distribution of the student's own images. The critic must keep up with the
    student, so it is updated ``critic_updates`` times as often ("two time scales", section 4.2). The student
    is trained at the latents that its own earlier steps produce ("backward simulation", section 4.4).

    Args:
        setup: networks and settings; ``critic`` starts as a copy of the teacher or of the first student.
    """

    def __init__(self, setup: Setup) -> None:
        assert setup.critic is not None
        self.setup, settings = setup, setup.stage.train
        self.grid = setup.trajectory.grid(setup.stage.inference_steps, "trailing")[:-1]
        self.student = Learner(setup.student, self.student_loss, settings, setup.processes)
        rate = setup.stage.critic_rate or settings.learning_rate
        self.critic = Learner(
            setup.critic, self.critic_loss,
            replace(settings, learning_rate=rate, ema_decay=0.0, seed=(settings.seed + 1) % 2**32),
            setup.processes,
        )  # fmt: skip
        self.learners: Mapping[str, Learner[Any]] = {"student": self.student, "critic": self.critic}

    def update(self, step: int, parts: Sequence[LatentBatch]) -> Terms:
        """Update the critic, and in each ``critic_updates``-th step the student."""
        terms = {f"critic/{name}": value for name, value in self.critic.update(step, parts).items()}
        every = self.setup.stage.critic_updates
        return terms | dict(self.student.update(step, parts)) if step % every == every - 1 else terms

    def student_loss(self, module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        """Return half the squared gradient of distribution matching (2405.14867, equation 2 and its code)."""
        setup, given = self.setup, self.setup.given(batch)
        made, scales = self._generate(module, given)
        with torch.no_grad():
            noisy, timesteps = self._noised(made, *NOISE_RANGE)
            real = setup.by_teacher(noisy, timesteps, given, scales).clean
            fake = setup.unguided(self.critic.model, noisy, timesteps, given).clean
            size = (made - real).abs().mean(dim=(1, 2, 3), keepdim=True)
            gradient = ((fake - real) / size).nan_to_num()
        loss = 0.5 * (made - (made - gradient).detach()).square().mean()
        return {"loss": loss, "score_gap": (fake - real).square().mean()}

    def critic_loss(self, module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        """Return the squared error of the noise in the student's images, at all noise levels."""
        given = self.setup.given(batch)
        with torch.no_grad():
            made, _ = self._generate(self.student.model, given)
            noisy, timesteps = self._noised(made, 0.0, 1.0)
            alpha, sigma = self.setup.trajectory.levels(timesteps)
            noise = (noisy - alpha * made) / sigma
        predicted = self.setup.unguided(module, noisy, timesteps, given)
        return {"loss": (predicted.noise - noise).square().mean()}

    def _generate(self, module: nn.Module, given: Given) -> tuple[Tensor, Tensor]:
        """Generate with the student up to a random step, with gradients of that step alone."""
        setup, clean = self.setup, given.clean
        scales = setup.scales(len(clean), clean.device)
        chosen = int(torch.randint(len(self.grid), ()))  # of the batch, so that all do the same work

        def at(number: int) -> Tensor:
            return self.grid[number].to(clean.device).expand(len(clean))

        if setup.stage.simulate:
            x = torch.randn_like(clean)
            with torch.no_grad():
                for number in range(chosen):
                    made = setup.by_student(module, x, at(number), given, scales).clean
                    x = setup.trajectory.noisy(made, at(number + 1))
        else:
            x = setup.trajectory.noisy(clean, at(chosen))
        return setup.by_student(module, x, at(chosen), given, scales).clean, scales

    def _noised(self, made: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        count = self.setup.trajectory.schedule.num_train_timesteps
        share = low + (high - low) * torch.rand(len(made), device=made.device)
        timesteps = (share * count).long().clamp(max=count - 1)
        alpha, sigma = self.setup.trajectory.levels(timesteps)
        return alpha * made + sigma * torch.randn_like(made), timesteps
