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

WEIGHTINGS = ("min-snr", "debiased", "constant")
"""Weights of the squared errors over the timesteps, see ``loss_weights``."""

_MAX_SNR = 1000.0
"""Above it debiased estimation no longer lowers the weight, as in sd-scripts."""


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
        cell_weights: weights of the squared error at each place, ``[B, 1, H, W]``; None is 1 everywhere.
    """

    inputs: UNetInputs
    target: Tensor
    weights: Tensor
    cell_weights: Tensor | None = None


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
        weighting: see ``loss_weights``.
        noise_offset: see ``noised``.
    """

    text: TextEncoders | None
    device: str
    dtype: torch.dtype
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    max_weight: float = MAX_WEIGHT
    early: bool = False
    weighting: str = "min-snr"
    noise_offset: float = 0.0

    def __call__(self, batch: LatentBatch) -> Example:
        """Add noise to a batch with torch's global generator, and encode its captions."""
        clean = batch.latents.to(self.device).float()
        text = without_captions(self.encode(batch.text), batch.has_caption.to(self.device))
        noisy = noised(
            self.schedule, clean, max_weight=self.max_weight, early=self.early, weighting=self.weighting,
            offset=self.noise_offset,
        )  # fmt: skip
        inputs = UNetInputs(noisy.latents, noisy.timesteps, *text, batch.time_ids.float())
        cells = None if batch.cell_weights is None else batch.cell_weights.to(self.device)
        return Example(inputs.to(self.device, self.dtype), noisy.target, noisy.weights, cells)

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


def without_captions(text: Conditioning, has_caption: Tensor) -> Conditioning:
    """Replace the text of images that are learned without a caption by SDXL's zeros.

    Zeros are not the encoding of an empty text.
    """
    return Conditioning(text.embeds * has_caption[:, None, None], text.pooled * has_caption[:, None])


def noised(
    schedule: NoiseSchedule, clean: Tensor, *, max_weight: float = MAX_WEIGHT, early: bool = False,
    weighting: str = "min-snr", offset: float = 0.0,
) -> Noised:  # fmt: skip
    """Add noise at uniformly drawn timesteps, with torch's global generator.

    The timesteps are divided into as many equal spans as there are images, and one is drawn from each: the
    loss of a batch then varies less with the draw (VDM, 2107.00630, appendix I.1, has one draw for all).

    Args:
        schedule: noise schedule.
        clean: latents, ``[B, 4, H, W]``.
        max_weight: see ``loss_weights``.
        early: draw noisy timesteps more often, by the cubic function of T2I-Adapter (2302.08453, section
            3.3), for conditions that decide where things are.
        weighting: see ``loss_weights``.
        offset: standard deviation of a further noise that is the same at all places of a channel, so that
            the brightness of whole images is learned (noise offset; sd-scripts ``apply_noise_offset``).
    """
    count, last = len(clean), schedule.num_train_timesteps - 1
    noise = torch.randn_like(clean)
    if offset:
        noise = noise + offset * torch.randn(*clean.shape[:2], 1, 1, device=clean.device)
    spans = torch.randperm(count, device=clean.device) + torch.rand(count, device=clean.device)
    drawn = (1 - (spans / count) ** 3) * (last + 1) if early else spans * ((last + 1) / count)
    timesteps = drawn.long().clamp(max=last)
    return Noised(
        schedule.add_noise(clean, noise, timesteps),
        timesteps.float(),
        schedule.target(clean, noise, timesteps),
        loss_weights(schedule, timesteps, max_weight, weighting),
    )


def loss_weights(
    schedule: NoiseSchedule, timesteps: Tensor, max_weight: float = MAX_WEIGHT, weighting: str = "min-snr"
) -> Tensor:
    """Return the weight of each image's squared error: ``min(snr + 1, max_weight)`` on the clean latents.

    For errors in the noise this is divided by ``snr``, for errors in v by ``snr + 1``. Min-SNR (2303.09556)
    caps the weight of nearly clean images. The ``+ 1``, as in EDM (2206.00364, table 1), keeps the weight of
    the noisiest ones above zero: they decide the background's colour, which an epsilon model learns last.

    ``weighting`` "debiased" is ``1 / sqrt(snr)`` for errors in the noise (2310.08442), and ``1 / (snr + 1)``
    for errors in v, as in sd-scripts; "constant" is 1, the plain mean squared error.
    """
    snr = schedule.snr(timesteps)
    if weighting == "constant":
        return torch.ones_like(snr)
    if weighting == "debiased":
        capped = snr.clamp(max=_MAX_SNR)
        return 1 / (capped + 1) if schedule.prediction_type == "v_prediction" else capped.rsqrt()
    return (snr + 1).clamp(max=max_weight) / (snr + 1 if schedule.prediction_type == "v_prediction" else snr)
