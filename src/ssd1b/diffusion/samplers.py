"""Samplers: generators that take latents from the first sigma to the last, yielding after each step.

All share k-diffusion's contract: ``run(denoise, latents, sigmas, noise)`` in variance exploding space, where
``latents = x0 + sigma * noise`` and ``denoise(x, sigma)`` estimates ``x0``. The caller iterates, and so
handles progress, previews and cancellation. Sigmas are Python floats, so that no step waits for the device.

Notation: h is the step size in -log sigma (half the log signal-to-noise ratio), in which the solvers of the
DPM family integrate the linear part of the ODE exactly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from ssd1b.diffusion.denoiser import Denoise
from ssd1b.diffusion.noise import Noise
from ssd1b.diffusion.schedule import Grid
from ssd1b.tensors import Latents


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The state of a sampler after a step.

    Attributes:
        index: number of the step, from 0.
        sigma: noise level of ``latents``; 0.0 after the last step.
        latents: the sampler's state.
        denoised: the model's estimate of the clean latents, made at the start of the step; for previews.
    """

    index: int
    sigma: float
    latents: Latents
    denoised: Latents


def euler(
    denoise: Denoise, latents: Latents, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0
) -> Iterator[Step]:
    """Take an Euler step, and replace part of the remaining noise by fresh noise.

    ``eta`` 0 is Euler's method for the probability flow (2206.00364, algorithm 1 without its correction),
    which is DDIM. ``eta`` 1 samples the posterior of the diffusion, which is DDPM (2006.11239, algorithm 2)
    and Euler ancestral. Values between give DDIM's family (2010.02502, equations 12 and 16). In this space
    all are the same update; the published samplers differ only in their grid.
    """
    x = latents
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        kept, fresh = _split(sigma, sigma_next, eta)
        x = denoised + (kept / sigma) * (x - denoised)
        if fresh > 0:
            x = x + fresh * noise()
        yield Step(index=index, sigma=sigma_next, latents=x, denoised=denoised)


def _split(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """Split the noise of the next level into a part kept from the current noise and a fresh part.

    2010.02502, equation 16, in variance exploding space; ``kept^2 + fresh^2 = sigma_next^2``.
    """
    fresh = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
    return math.sqrt(sigma_next**2 - fresh**2), fresh


def heun(denoise: Denoise, latents: Latents, sigmas: Sequence[float], noise: Noise) -> Iterator[Step]:
    """Average the slopes at both ends of the step; two evaluations (2206.00364, algorithm 1)."""
    x = latents
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        ahead = denoised + (sigma_next / sigma) * (x - denoised)
        if sigma_next > 0:
            slope, slope_ahead = (x - denoised) / sigma, (ahead - denoise(ahead, sigma_next)) / sigma_next
            ahead = x + (sigma_next - sigma) * (slope + slope_ahead) / 2
        x = ahead
        yield Step(index=index, sigma=sigma_next, latents=x, denoised=denoised)


def dpmpp_2m(
    denoise: Denoise, latents: Latents, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0
) -> Iterator[Step]:
    """Extrapolate the denoised latents from the last two evaluations.

    ``eta`` 0 is DPM-Solver++(2M) (2211.01095, algorithm 2), ``eta`` 1 the same paper's SDE-DPM-Solver++(2M)
    with the midpoint rule (k-diffusion ``sample_dpmpp_2m`` and ``sample_dpmpp_2m_sde``). The last step, to
    sigma 0, is of first order, because h is infinite there.

    With ``r = sigma_next / sigma = e^-h``, the papers' ``e^(-(1 + eta) h)`` is ``r^(1 + eta)``.
    """
    x, previous, sigma_previous = latents, None, math.nan
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = midpoint = denoise(x, sigma)
        if previous is not None and sigma_next > 0:
            h, h_previous = math.log(sigma / sigma_next), math.log(sigma_previous / sigma)
            midpoint = denoised + (h / (2 * h_previous)) * (denoised - previous)
        decay = (sigma_next / sigma) ** (1 + eta)
        x = decay * x + (1 - decay) * midpoint
        fresh = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** (2 * eta))
        if fresh > 0:
            x = x + fresh * noise()
        previous, sigma_previous = denoised, sigma
        yield Step(index=index, sigma=sigma_next, latents=x, denoised=denoised)


def dpmpp_sde(denoise: Denoise, latents: Latents, sigmas: Sequence[float], noise: Noise) -> Iterator[Step]:
    """Evaluate at the midpoint in log sigma, and take the whole step with that; two evaluations.

    Katherine Crowson's stochastic form of DPM-Solver++(2S) (2211.01095, algorithm 1, r = 1/2; k-diffusion
    ``sample_dpmpp_sde``). Both stages share one Brownian path over sigma: its increments before and after
    the midpoint are drawn separately, and their sum is the noise of the whole step, so no tree of past
    values is needed.
    """
    x = latents
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if sigma_next > 0:
            middle = math.sqrt(sigma * sigma_next)
            first, second = noise(), noise()
            kept, fresh = _split(sigma, middle)
            halfway = denoise(denoised + (kept / sigma) * (x - denoised) + fresh * first, middle)
            share = (sigma - middle) / (sigma - sigma_next)
            path = math.sqrt(share) * first + math.sqrt(1 - share) * second
            kept, fresh = _split(sigma, sigma_next)
            x = halfway + (kept / sigma) * (x - halfway) + fresh * path
        else:
            x = denoised
        yield Step(index=index, sigma=sigma_next, latents=x, denoised=denoised)


def unipc(
    denoise: Denoise, latents: Latents, sigmas: Sequence[float], noise: Noise, *, order: int = 2
) -> Iterator[Step]:
    """Predict the next latents from past evaluations, and correct them with the new one; one evaluation.

    UniPC with B2(h) = e^h - 1, in the form for models that predict x0 (2302.04867, section 3). The order
    rises with the history and falls to 1 at the last step.
    """
    x = start = latents
    history: list[tuple[float, Latents]] = []
    used = 0
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if history:
            x = _unipc_update(start, history[-used:], sigma, arrived=denoised)
        history = [*history, (sigma, denoised)][-order:]
        used = min(order, len(sigmas) - 1 - index, len(history))
        start, x = x, _unipc_update(x, history[-used:], sigma_next)
        yield Step(index=index, sigma=sigma_next, latents=x, denoised=denoised)


def _unipc_update(
    x: Latents, history: Sequence[tuple[float, Latents]], sigma_next: float, arrived: Latents | None = None
) -> Latents:
    """Step from the last level of ``history``; ``arrived``, the evaluation at the next, corrects it.

    UniP and UniC are one formula (2302.04867, section 3): the exponential step, plus weighted slopes of the
    denoised latents towards other levels, whose distances in units of h are ``ratios``.
    """
    sigma, denoised = history[-1]
    h = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
    ratios = [math.log(sigma / level) / h for level, _ in history[-2::-1]]
    slopes = [(past - denoised) / ratio for ratio, (_, past) in zip(ratios, history[-2::-1], strict=True)]
    if arrived is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, arrived - denoised]
    progress = -math.expm1(-h)
    x = (sigma_next / sigma) * x + progress * denoised
    for weight, slope in zip(_unipc_weights(ratios, h), slopes, strict=True):
        x = x + (progress * weight) * slope
    return x


def _unipc_weights(ratios: Sequence[float], h: float) -> Sequence[float]:
    """Match the moments of the exact solution (2302.04867, theorem 3.1); a single weight is 1/2 for any h."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    moments: list[float] = []
    phi, factorial = math.expm1(-h) / -h - 1, 1
    for i in range(1, len(ratios) + 1):
        moments.append(phi * factorial / math.expm1(-h))
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve(np.vander(ratios, increasing=True).T, moments).tolist()


def lcm(denoise: Denoise, latents: Latents, sigmas: Sequence[float], noise: Noise) -> Iterator[Step]:
    """Jump to the denoised latents and add noise of the next level (2310.04378, algorithm 3)."""
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(latents, sigma)
        latents = denoised + sigma_next * noise() if sigma_next > 0 else denoised
        yield Step(index=index, sigma=sigma_next, latents=latents, denoised=denoised)


def tcd(
    denoise: Denoise, latents: Latents, sigmas: Sequence[float], noise: Noise, *,
    lower: Sequence[float] | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Step along the trajectory below the next level, and add noise up to it (2402.19159, algorithm 4).

    Args:
        denoise: see the module, as for the other arguments.
        latents: at the first sigma.
        sigmas: levels of the run.
        noise: gives fresh noise.
        lower: the level that each step goes down to, at most the next one; see ``schedule.lower_levels``.
            None is the next one, which is DDIM.
    """
    x = latents
    reached = sigmas[1:] if lower is None else lower
    for index, ((sigma, sigma_next), below) in enumerate(zip(pairwise(sigmas), reached, strict=True)):
        denoised = denoise(x, sigma)
        x = denoised + (below / sigma) * (x - denoised)
        if sigma_next > below:
            x = x + math.sqrt(sigma_next**2 - below**2) * noise()
        elif sigma_next < below:  # the last step: the result is read as it is at timestep 0, at unit variance
            x = x / math.hypot(below, 1.0)
        yield Step(index=index, sigma=sigma_next, latents=x, denoised=denoised)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """An algorithm with the grid it is used on.

    Attributes:
        run: ``run(denoise, latents, sigmas, noise)`` yields one ``Step`` per step.
        grid: conventions for its steps.
        evaluations: model calls per step, except in the last one, which takes one.
        gamma: ``run`` also takes ``lower``, the levels that follow from the setting ``gamma``.
    """

    run: Callable[..., Iterator[Step]]
    grid: Grid
    evaluations: int = 1
    gamma: bool = False


_POINTS = Grid()
_PRESERVING = Grid(whole_timesteps=True, unit_start=True)
_INTERVALS = Grid(intervals=True, whole_timesteps=True, whole_range=True, unit_start=True)
_CONSISTENCY = Grid(whole_timesteps=True, unit_start=True, schedule="lcm")

SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(run=euler, grid=_POINTS),
    "euler_ancestral": Sampler(run=partial(euler, eta=1.0), grid=_POINTS),
    "heun": Sampler(run=heun, grid=_POINTS, evaluations=2),
    "ddim": Sampler(run=euler, grid=_PRESERVING),
    "ddpm": Sampler(run=partial(euler, eta=1.0), grid=_PRESERVING),
    "dpmpp_2m": Sampler(run=dpmpp_2m, grid=_INTERVALS),
    "dpmpp_2m_sde": Sampler(run=partial(dpmpp_2m, eta=1.0), grid=_INTERVALS),
    "dpmpp_sde": Sampler(run=dpmpp_sde, grid=_POINTS, evaluations=2),
    "unipc": Sampler(run=unipc, grid=_INTERVALS),
    "lcm": Sampler(run=lcm, grid=_CONSISTENCY),
    "tcd": Sampler(run=tcd, grid=_CONSISTENCY, gamma=True),
}
"""Every sampler by its canonical name; ``sampler_names`` has the aliases."""
