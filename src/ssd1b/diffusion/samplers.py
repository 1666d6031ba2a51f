"""The samplers: each walks latents from the first sigma down to the last, one step per ``yield``.

All share k-diffusion's contract: ``sampler(denoise, latents, sigmas, noise)`` in variance exploding space,
``latents = x0 + sigma * noise``. Whoever iterates owns progress, preview and cancellation. Sigmas are Python
floats, so that no step waits for the device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from ssd1b.diffusion.denoiser import Denoise
from ssd1b.diffusion.noise import Noise
from ssd1b.diffusion.schedule import Grid
from ssd1b.tensors import Latents


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a sampler knows after a step.

    Attributes:
        index: counted from 0.
        sigma: noise level of ``latents``, 0.0 after the last step.
        latents: the state to go on from.
        denoised: the model's guess at the picture, made before the step; what a preview shows.
    """

    index: int
    sigma: float
    latents: Latents
    denoised: Latents


def euler(
    denoise: Denoise, latents: Latents, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0
) -> Iterator[Step]:
    """Follow the tangent, and trade a share of what noise remains for fresh noise.

    ``eta`` 0 is Euler's method for the probability flow (2206.00364, algorithm 1 without its correction),
    which is DDIM. ``eta`` 1 samples the posterior of the diffusion, which is DDPM (2006.11239, algorithm 2)
    and Euler ancestral. Between them lies DDIM's family (2010.02502, equations 12 and 16). In this space they
    are one update, and the published samplers differ only by the grid they are used on.
    """
    x = latents
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        fresh = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        kept = math.sqrt(sigma_next**2 - fresh**2)
        x = denoised + (kept / sigma) * (x - denoised)
        if fresh > 0:
            x = x + fresh * noise()
        yield Step(index=index, sigma=sigma_next, latents=x, denoised=denoised)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A row of the table.

    Attributes:
        run: ``run(denoise, latents, sigmas, noise)`` yields one ``Step`` per step.
        grid: the steps it is used on.
    """

    run: Callable[[Denoise, Latents, Sequence[float], Noise], Iterator[Step]]
    grid: Grid


POINTS = Grid()
VARIANCE_PRESERVING = Grid(whole_timesteps=True, unit_start=True)

SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(run=euler, grid=POINTS),
    "euler_ancestral": Sampler(run=partial(euler, eta=1.0), grid=POINTS),
    "ddim": Sampler(run=euler, grid=VARIANCE_PRESERVING),
    "ddpm": Sampler(run=partial(euler, eta=1.0), grid=VARIANCE_PRESERVING),
}
