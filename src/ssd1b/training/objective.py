"""The diffusion objective: what a UNet is given of a batch, what it should say, and how much that counts."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.models.text import Conditioning, TextEncoders
from ssd1b.training.loop import Batch

MAX_WEIGHT = 5.0
"""Gamma of min-SNR (2303.09556)."""


class Noised(NamedTuple):
    """Clean latents at times drawn for them.

    Attributes:
        latents: with noise, ``[B, 4, H, W]``; timesteps: ``[B]``.
        target: what is to be predicted, ``[B, 4, H, W]``, float32.
        weights: of each picture's squared error, ``[B]``.
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor


class Example(NamedTuple):
    """One batch, noised, with its conditioning.

    Attributes:
        inputs: of ``UNet.forward``: latents, timesteps, prompt_embeds, pooled_prompt_embeds, time_ids.
        target: what is to be predicted, ``[B, 4, H, W]``, float32.
        weights: of each picture's squared error, ``[B]``.
    """

    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    target: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Noise at uniformly drawn times (Ho et al. 2020, 2006.11239, algorithm 1), with SDXL's conditioning.

    Attributes:
        text: both frozen encoders, on ``device``; None where every batch brings its embeddings.
        device: where the network is; dtype: in which it computes.
        schedule: of the noise.
        max_weight: see ``loss_weights``.
    """

    text: TextEncoders | None
    device: str
    dtype: torch.dtype
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    max_weight: float = MAX_WEIGHT

    def __call__(self, batch: Batch) -> Example:
        """Noise a batch with torch's global generator.

        Args:
            batch: ``latents [B, 4, H, W]``; ``tokens``, as the encoders take them, or their ``conditioning``;
                ``time_ids [B, 6]``; ``kept [B]``, false where the caption is to be left out (2207.12598).
        """
        clean = batch["latents"].to(self.device).float()
        kept = batch["kept"].to(self.device)
        embeds, pooled = (part.to(self.device) for part in batch.get("conditioning") or self._encode(batch))
        noisy = noised(self.schedule, clean, max_weight=self.max_weight)
        inputs = (
            noisy.latents.to(self.dtype),
            noisy.timesteps,
            # SDXL's convention: no caption is zeros, not the encoding of an empty text.
            (embeds * kept[:, None, None]).to(self.dtype),
            (pooled * kept[:, None]).to(self.dtype),
            batch["time_ids"].to(self.device).float(),
        )
        return Example(inputs, noisy.target, noisy.weights)

    def _encode(self, batch: Batch) -> Conditioning:
        assert self.text is not None
        with torch.autocast(
            torch.device(self.device).type, self.dtype, enabled=self.dtype is not torch.float32
        ):
            return self.text.encode(batch["tokens"])


def noised(schedule: NoiseSchedule, clean: Tensor, *, max_weight: float = MAX_WEIGHT) -> Noised:
    """Add noise at uniformly drawn times, with torch's global generator.

    The times are cut into as many equal spans as there are pictures, and each span gives one: the loss of a
    batch then depends less on which times were drawn (VDM, 2107.00630, appendix I.1, has one draw for all).

    Args:
        schedule: of the noise.
        clean: latents, ``[B, 4, H, W]``.
        max_weight: see ``loss_weights``.
    """
    count, last = len(clean), schedule.num_train_timesteps - 1
    noise = torch.randn_like(clean)
    spans = torch.randperm(count, device=clean.device) + torch.rand(count, device=clean.device)
    timesteps = (spans * ((last + 1) / count)).long().clamp(max=last)
    return Noised(
        schedule.add_noise(clean, noise, timesteps),
        timesteps.float(),
        schedule.target(clean, noise, timesteps),
        loss_weights(schedule, timesteps, max_weight),
    )


def loss_weights(schedule: NoiseSchedule, timesteps: Tensor, max_weight: float = MAX_WEIGHT) -> Tensor:
    """Weight of each picture's squared error: ``min(snr + 1, max_weight)`` of that in the clean latents.

    That is ``/ snr`` for errors in the noise, ``/ (snr + 1)`` for errors in v. Min-SNR (2303.09556) caps what
    nearly clean pictures weigh; the ``+ 1``, as in EDM (2206.00364, table 1), keeps the noisiest ones from
    weighing nothing: they decide the background's colour, which an epsilon model otherwise learns last.
    """
    snr = schedule.snr(timesteps)
    return (snr + 1).clamp(max=max_weight) / (snr + 1 if schedule.prediction_type == "v_prediction" else snr)
