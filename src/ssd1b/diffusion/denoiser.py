"""Turn a model's prediction into denoised latents, with classifier-free guidance.

The functions compose: ``guided`` wraps the pipeline's forward pass, and ``denoiser`` wraps that. As in the
paper, guidance combines predictions; only the denoiser knows about noise levels.
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
"""The same for both prompts: -> (prediction for the negative prompt, prediction for the prompt)."""

Denoise: TypeAlias = Callable[[Latents, float], Latents]
"""Noisy latents ``x0 + sigma * noise`` and their sigma -> the expected ``x0`` (k-diffusion's contract)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """Strength, rescaling and interval of classifier-free guidance.

    Attributes:
        scale: guidance scale (2207.12598, in the field's convention where 1 is no guidance).
        rescale: 0 to 1, weight of the rescaled prediction (2305.08891, equations 14 to 16).
        start: start of the guidance interval, as a fraction of the model's timesteps from noise (0) to
            image (1). Outside the interval the model follows the prompt alone (2404.07724, where the
            interval is given in sigmas).
        end: end of the interval, exclusive.
    """

    scale: float
    rescale: float = 0.0
    start: float = 0.0
    end: float = 1.0


def guided(
    predict: Predict, predict_pair: PredictPair, guidance: Guidance, num_train_timesteps: int
) -> Predict:
    """Wrap a model in classifier-free guidance, running it for the prompt alone where that suffices.

    It takes two callables, so that this function decides when the pair is computed and the caller how (as
    one batch of twice the size, or one after the other to save memory).

    Args:
        predict: forward pass for the prompt.
        predict_pair: forward pass for the negative prompt and the prompt.
        guidance: with a scale of 1, ``predict`` is returned unchanged.
        num_train_timesteps: number of the model's timesteps, 1000 in SDXL.
    """
    if guidance.scale == 1.0:
        return predict

    def predict_guided(x: Latents, timestep: float) -> Latents:
        progress = (num_train_timesteps - 1 - timestep) / num_train_timesteps
        if not guidance.start <= progress < guidance.end:
            return predict(x, timestep)
        negative, positive = (half.to(x.dtype) for half in predict_pair(x, timestep))
        output = negative + guidance.scale * (positive - negative)
        return rescaled(output, positive, guidance.rescale) if guidance.rescale else output

    return predict_guided


def rescaled(guided: Latents, positive: Latents, share: float) -> Latents:
    """Rescale guided predictions to the standard deviation of unguided ones, against overexposure.

    2305.08891, equations 14 to 16, with ``share`` for its phi, which is 0.7 in the paper.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (share * ratio + (1 - share))


def denoiser(predict: Predict, noise_schedule: NoiseSchedule, steps: StepSchedule) -> Denoise:
    """Make the ``denoise`` function that samplers call.

    The sigmas of ``steps`` keep their timesteps; for others (the midpoints of DPM++ SDE) the timestep is
    interpolated in log sigma. Latents stay in their dtype, float32, whatever the model computes in.

    Args:
        predict: the model, guided or not; called with ``x / sqrt(sigma^2 + 1)``.
        noise_schedule: the model's noise schedule.
        steps: sigmas and timesteps of the run.
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
