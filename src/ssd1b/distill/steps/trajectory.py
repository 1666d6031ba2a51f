"""The diffusion trajectory in variance preserving space: levels, DDIM steps, and noisy starting points.

Timesteps are whole, ``[B]``; -1 is the clean end, with alpha 1 and sigma 0. ``x_t = alpha x0 + sigma noise``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssd1b.diffusion.schedule import SMALLEST_ALPHA, NoiseSchedule
from ssd1b.diffusion.spacing import SPACINGS

CLEAN = -1
"""The timestep of an image without noise."""


class Estimate(NamedTuple):
    """What a prediction says: the clean latents and the noise, ``[B, 4, H, W]`` each, float32."""

    clean: Tensor
    noise: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """Conversions along the trajectory of one noise schedule.

    Attributes:
        schedule: of teacher and student.
    """

    schedule: NoiseSchedule

    @property
    def top(self) -> int:
        """The noisiest timestep."""
        return self.schedule.num_train_timesteps - 1

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of timesteps, ``[B, 1, 1, 1]`` each."""
        alphas = self.schedule.alphas_cumprod.clamp(min=SMALLEST_ALPHA)
        both = torch.stack([alphas.sqrt(), (1 - alphas).sqrt()])
        clean = torch.tensor([[1.0], [0.0]], dtype=both.dtype)
        table = torch.cat([both, clean], dim=1).float().to(timesteps.device)  # index -1 is the clean end
        alpha, sigma = table[:, timesteps.long(), None, None, None]
        return alpha, sigma

    def estimate(self, x: Tensor, timesteps: Tensor, prediction: Tensor) -> Estimate:
        """Convert a prediction, epsilon or v (2202.00512, appendix D), at noisy latents."""
        alpha, sigma = self.levels(timesteps)
        if self.schedule.prediction_type == "v_prediction":
            return Estimate(alpha * x - sigma * prediction, sigma * x + alpha * prediction)
        return Estimate((x - sigma * prediction) / alpha, prediction)

    def at(self, estimate: Estimate, timesteps: Tensor) -> Tensor:
        """Go to other timesteps by DDIM (2010.02502, equation 12 with sigma 0)."""
        alpha, sigma = self.levels(timesteps)
        return alpha * estimate.clean + sigma * estimate.noise

    def noisy(self, clean: Tensor, timesteps: Tensor) -> Tensor:
        """Add noise to clean latents, with torch's global generator; at the top return noise alone.

        Sampling starts from noise alone, while a noised image still has 7 % of itself at SDXL's top. A
        student of few steps that had learned from that rest would miss it (2305.08891; 2402.13929).
        """
        alpha, sigma = self.levels(timesteps)
        noise = torch.randn_like(clean)
        top = (timesteps == self.top)[:, None, None, None]
        return torch.where(top, noise, alpha * clean + sigma * noise)

    def grid(self, steps: int, schedule: str) -> Tensor:
        """Return the timesteps of a run on a schedule, falling, and the clean end: ``[steps + 1]``."""
        timesteps = SPACINGS[schedule](steps, self.schedule.num_train_timesteps, 0, False)
        return torch.tensor([*map(round, timesteps), CLEAN])


def spread(count: int, choices: int, device: torch.device) -> Tensor:
    """Draw ``count`` indices below ``choices``, as evenly as possible: ``[count]``."""
    spans = torch.randperm(count, device=device) + torch.rand(count, device=device)
    return (spans * (choices / count)).long().clamp(max=choices - 1)
