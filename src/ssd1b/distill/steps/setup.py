"""What every method of step distillation works with: networks, conditioning, guidance, trajectory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssd1b.diffusion.denoiser import rescaled
from ssd1b.distill.steps.stages import StepStage
from ssd1b.distill.steps.trajectory import Estimate, Trajectory
from ssd1b.models.layers import guidance_embedding
from ssd1b.models.unet_inputs import UNetInputs
from ssd1b.training.batches import LatentBatch
from ssd1b.training.precision import computing_in
from ssd1b.training.processes import Processes


class Conditions(NamedTuple):
    """What a UNet takes beside latents and timesteps.

    Attributes:
        embeds: of the captions, ``[B, tokens, C]``.
        pooled: of the captions, ``[B, P]``.
        time_ids: micro-conditioning, ``[B, 6]``.
    """

    embeds: Tensor
    pooled: Tensor
    time_ids: Tensor


class Given(NamedTuple):
    """A batch for step distillation.

    Attributes:
        clean: latents of images, ``[B, 4, H, W]``, float32.
        captions: their conditioning.
        empty: conditioning without a caption, from which guidance moves away.
    """

    clean: Tensor
    captions: Conditions
    empty: Conditions

    def repeated(self, times: int) -> "Given":
        """Return the whole batch several times in a row."""
        captions, empty = (
            Conditions(*(part.repeat(times, *[1] * (part.ndim - 1)) for part in each))
            for each in (self.captions, self.empty)
        )
        return Given(self.clean.repeat(times, 1, 1, 1), captions, empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything a method needs to make its task.

    Attributes:
        student: learns; float32.
        teacher: is frozen.
        critic: a copy of the network from which the fake score of ``dmd`` starts; None for other methods.
        given: encodes a batch.
        trajectory: of both networks.
        stage: method, guidance and training settings.
        processes: of the training.
        dtype: number format of the computation.
        guidance_dim: width of the guidance scale that the student embeds; None for a student that takes none.
    """

    student: nn.Module
    teacher: nn.Module
    critic: nn.Module | None
    given: Callable[[LatentBatch], Given]
    trajectory: Trajectory
    stage: StepStage
    processes: Processes
    dtype: torch.dtype
    guidance_dim: int | None = None

    def scales(self, count: int, device: torch.device) -> Tensor:
        """Draw guidance scales, ``[B]``, uniformly from the stage's range (2210.03142; 2310.04378, 4.2)."""
        low, high = self.stage.scales
        return low + (high - low) * torch.rand(count, device=device)

    @torch.no_grad()
    def by_teacher(self, x: Tensor, timesteps: Tensor, given: Given, scales: Tensor) -> Estimate:
        """Return the guided teacher's estimate (2207.12598); one pass where guidance is off."""
        if self.stage.scales == (1.0, 1.0):
            output = self._run(self.teacher, x, timesteps, given.captions)
        else:
            both = Conditions(*(torch.cat(pair) for pair in zip(given.empty, given.captions, strict=True)))
            doubled = self._run(self.teacher, x.repeat(2, 1, 1, 1), timesteps.repeat(2), both)
            negative, positive = doubled.chunk(2)
            output = negative + scales[:, None, None, None] * (positive - negative)
            if self.stage.guidance_rescale:
                output = rescaled(output, positive, self.stage.guidance_rescale)
        return self.trajectory.estimate(x, timesteps, output)

    def by_student(
        self, module: nn.Module, x: Tensor, timesteps: Tensor, given: Given, scales: Tensor
    ) -> Estimate:
        """Return the estimate of a student: the one that learns, or its average."""
        embedded = [] if self.guidance_dim is None else [guidance_embedding(scales, self.guidance_dim)]
        output = self._run(computing_in(self.dtype, module), x, timesteps, given.captions, *embedded)
        return self.trajectory.estimate(x, timesteps, output)

    def unguided(self, module: nn.Module, x: Tensor, timesteps: Tensor, given: Given) -> Estimate:
        """Return the estimate of a network that takes no guidance, such as the critic."""
        output = self._run(computing_in(self.dtype, module), x, timesteps, given.captions)
        return self.trajectory.estimate(x, timesteps, output)

    def _run(
        self, network: Callable[..., Tensor], x: Tensor, timesteps: Tensor, given: Conditions, *more: Tensor
    ) -> Tensor:
        inputs = UNetInputs(x, timesteps.float(), *given).to(x.device, self.dtype)
        return network(*inputs, *(each.to(self.dtype) for each in more)).float()
