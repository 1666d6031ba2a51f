"""From a model's prediction to denoised latents, with guidance on the way.

Three functions that compose: the pipeline's own forward pass, ``guided`` around it, ``denoiser`` around that.
Guidance works on what the model predicts, as it was published; the denoiser knows about noise levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ssd1b.diffusion.schedule import NoiseSchedule, StepSchedule, timestep_of
from ssd1b.tensors import Latents

Predict: TypeAlias = Callable[[Latents, float], Latents]
"""A forward pass: latents of about unit variance and their timestep -> epsilon or v, in any dtype."""

PredictPair: TypeAlias = Callable[[Latents, float], tuple[Latents, Latents]]
"""The same for both prompts: -> (prediction for the negative prompt, for the prompt). Best as one batch."""

Denoise: TypeAlias = Callable[[Latents, float], Latents]
"""Noisy latents ``x0 + sigma * noise`` and their sigma -> the expected ``x0`` (k-diffusion's contract)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """How strongly, how and when the prompt pulls away from the negative prompt.

    Attributes:
        scale: classifier-free guidance (2207.12598, in the field's convention where 1 is none).
        rescale: 0 to 1, share of the rescaled prediction (2305.08891, equations 14 to 16).
        start: when guidance begins and
        end: ends, as fractions of the model's timesteps from noise (0) to picture (1), end not included.
            Outside, the model follows the prompt alone (2404.07724, where the interval is one of sigmas).
    """

    scale: float
    rescale: float = 0.0
    start: float = 0.0
    end: float = 1.0


def guided(
    predict: Predict, predict_pair: PredictPair, guidance: Guidance, num_train_timesteps: int
) -> Predict:
    """Wrap a model in classifier-free guidance; it runs for the prompt alone where that is all it takes.

    Two callables and not one with a flag, so that the pipeline decides how the pair is computed (one batch of
    twice the size, or one after the other where memory is short) and this function only when.

    Args:
        predict: forward pass for the prompt.
        predict_pair: forward pass for the negative prompt and the prompt.
        guidance: a scale of 1 gives ``predict`` back.
        num_train_timesteps: of the model, 1000 in SDXL.
    """
    if guidance.scale == 1.0:
        return predict

    def prediction(x: Latents, timestep: float) -> Latents:
        progress = (num_train_timesteps - 1 - timestep) / num_train_timesteps
        if not guidance.start <= progress < guidance.end:
            return predict(x, timestep)
        negative, positive = (half.to(x.dtype) for half in predict_pair(x, timestep))
        output = negative + guidance.scale * (positive - negative)
        return rescaled(output, positive, guidance.rescale) if guidance.rescale else output

    return prediction


def rescaled(guided: Latents, positive: Latents, share: float) -> Latents:
    """Give guided predictions the spread of unguided ones, against overexposure.

    2305.08891, equations 14 to 16, with ``share`` its phi: 0.7 in the paper.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (share * ratio + (1 - share))


def denoiser(predict: Predict, noise_schedule: NoiseSchedule, steps: StepSchedule) -> Denoise:
    """Make the function that samplers call.

    A sigma of the run's own table keeps its own timestep; one between two steps (the midpoints of DPM++ SDE)
    gets its by interpolation in log sigma. Latents keep their dtype, float32, whatever the model computes in.

    Args:
        predict: the model, guided or not; it gets ``x / sqrt(sigma^2 + 1)``.
        noise_schedule: the model's.
        steps: the run's.
    """
    table = noise_schedule.sigmas.tolist()
    timesteps = dict(zip(steps.sigmas[:-1], steps.timesteps, strict=True))
    from_v = noise_schedule.prediction_type == "v_prediction"

    def denoise(x: Latents, sigma: float) -> Latents:
        timestep = timesteps[sigma] if sigma in timesteps else timestep_of(sigma, table)
        root = math.hypot(sigma, 1.0)
        prediction = predict(x / root, timestep).to(x.dtype)
        if from_v:  # 2202.00512, appendix D: x0 = alpha x - sigma v, in variance preserving space
            return x / root**2 - prediction * (sigma / root)
        return x - sigma * prediction

    return denoise
