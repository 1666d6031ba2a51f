"""The diffusion objective: a UNet's inputs, target and loss weights for a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.models.text import Conditioning, TextEncoders, Tokens
from ssd1b.models.unet_inputs import UNetInputs
from ssd1b.training.batches import LatentBatch

MAX_WEIGHT = 5.0
"""Gamma of min-SNR (2303.09556)."""


class Noised(NamedTuple):
    """Latents with noise at random timesteps.

    Attributes:
        latents: noisy latents, ``[B, 4, H, W]``.
        timesteps: ``[B]``, float32.
        target: the UNet's target, ``[B, 4, H, W]``, float32.
        weights: weight of each image's squared error, ``[B]``.
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor


class Example(NamedTuple):
    """A training example: a noisy batch with its conditioning.

    Attributes:
        inputs: of the UNet.
        target: the UNet's target, ``[B, 4, H, W]``, float32.
        weights: weight of each image's squared error, ``[B]``.
    """

    inputs: UNetInputs
    target: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Noise at uniformly drawn timesteps (Ho et al. 2020, 2006.11239, algorithm 1), with SDXL's conditioning.

    Attributes:
        text: both frozen encoders, on ``device``; None if every batch brings embeddings.
        device: the UNet's device.
        dtype: number format in which the UNet computes.
        schedule: noise schedule.
        max_weight: see ``loss_weights``.
        early: see ``noised``.
    """

    text: TextEncoders | None
    device: str
    dtype: torch.dtype
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    max_weight: float = MAX_WEIGHT
    early: bool = False

    def __call__(self, batch: LatentBatch) -> Example:
        """Add noise to a batch with torch's global generator, and encode its captions."""
        clean = batch.latents.to(self.device).float()
        has_caption = batch.has_caption.to(self.device)
        embeds, pooled = self.encode(batch.text)
        noisy = noised(self.schedule, clean, max_weight=self.max_weight, early=self.early)
        inputs = UNetInputs(
            noisy.latents,
            noisy.timesteps,
            # SDXL's convention: no caption is zeros, not the encoding of an empty text.
            embeds * has_caption[:, None, None],
            pooled * has_caption[:, None],
            batch.time_ids.float(),
        )
        return Example(inputs.to(self.device, self.dtype), noisy.target, noisy.weights)

    def encode(self, text: Sequence[Tokens] | Conditioning) -> Conditioning:
        """Encode captions, if they are tokens, and move them to the device."""
        if isinstance(text, Conditioning):
            return Conditioning(*(part.to(self.device) for part in text))
        assert self.text is not None
        with torch.autocast(
            torch.device(self.device).type, self.dtype, enabled=self.dtype is not torch.float32
        ):
            # Tensors from inference mode could not take part in a training.
            return Conditioning(*(part.clone() for part in self.text.encode(text)))


def noised(
    schedule: NoiseSchedule, clean: Tensor, *, max_weight: float = MAX_WEIGHT, early: bool = False
) -> Noised:
    """Add noise at uniformly drawn timesteps, with torch's global generator.

    The timesteps are divided into as many equal spans as there are images, and one is drawn from each: the
    loss of a batch then varies less with the draw (VDM, 2107.00630, appendix I.1, has one draw for all).

    Args:
        schedule: noise schedule.
        clean: latents, ``[B, 4, H, W]``.
        max_weight: see ``loss_weights``.
        early: draw noisy timesteps more often, by the cubic function of T2I-Adapter (2302.08453, section
            3.3), for conditions that decide where things are.
    """
    count, last = len(clean), schedule.num_train_timesteps - 1
    noise = torch.randn_like(clean)
    spans = torch.randperm(count, device=clean.device) + torch.rand(count, device=clean.device)
    drawn = (1 - (spans / count) ** 3) * (last + 1) if early else spans * ((last + 1) / count)
    timesteps = drawn.long().clamp(max=last)
    return Noised(
        schedule.add_noise(clean, noise, timesteps),
        timesteps.float(),
        schedule.target(clean, noise, timesteps),
        loss_weights(schedule, timesteps, max_weight),
    )


def loss_weights(schedule: NoiseSchedule, timesteps: Tensor, max_weight: float = MAX_WEIGHT) -> Tensor:
    """Return the weight of each image's squared error: ``min(snr + 1, max_weight)`` on the clean latents.

    For errors in the noise this is divided by ``snr``, for errors in v by ``snr + 1``. Min-SNR (2303.09556)
    caps the weight of nearly clean images. The ``+ 1``, as in EDM (2206.00364, table 1), keeps the weight of
    the noisiest ones above zero: they decide the background's colour, which an epsilon model learns last.
    """
    snr = schedule.snr(timesteps)
    return (snr + 1).clamp(max=max_weight) / (snr + 1 if schedule.prediction_type == "v_prediction" else snr)
