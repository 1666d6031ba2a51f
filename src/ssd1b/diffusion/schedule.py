"""Noise levels: those the model was trained on, and those that one run visits.

Two spaces are in use. Training is variance preserving: ``x = sqrt(a) x0 + sqrt(1 - a) noise``, with ``a`` the
cumulated alpha of a timestep. Sampling is variance exploding: ``x = x0 + sigma * noise``. They differ by the
factor ``sqrt(sigma^2 + 1)`` alone, and ``sigma^2 = (1 - a) / a`` (Karras et al. 2206.00364, appendix C.3).

The grids follow diffusers, so that the same settings give the same picture; docs/adr/0002-samplers.md lists
what was done differently, and why.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssd1b.errors import InputError, unknown
from ssd1b.tensors import Latents

SMALLEST_ALPHA = 2.0**-24
"""Stands for a cumulated alpha of zero when sampling, so that the first sigma is 4096 and not infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """How a model was trained to see noise, and how its makers sample it; the defaults are SDXL's.

    Attributes:
        num_train_timesteps: timesteps 0 (least noise) to this minus one.
        beta_schedule: ``linear``, ``scaled_linear`` (linear in the square root) or ``squaredcos_cap_v2``.
        beta_start: variance added at timestep 0; unused by ``squaredcos_cap_v2``, as is ``beta_end``.
        beta_end: variance added at the last timestep.
        prediction_type: what the model predicts: ``epsilon``, or ``v_prediction`` (2202.00512, appendix D).
        zero_terminal_snr: betas rescaled so that the last timestep is pure noise (2305.08891, algorithm 1).
        timestep_spacing: ``leading``, ``trailing`` or ``linspace`` (2305.08891, table 2).
        steps_offset: added to the timesteps of ``leading``.
        curve: ``karras``, ``exponential``, ``beta``, or None to sample at the spacing's own sigmas.
        sampler: canonical name.
    """

    num_train_timesteps: int = 1000
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    curve: str | None = None
    sampler: str = "euler"

    @property
    def alphas_cumprod(self) -> Float[Tensor, " timesteps"]:
        """Share of the picture in the variance at each timestep, float64, falling; 0 last with zero SNR."""
        return _alphas_cumprod(self)

    @property
    def sigmas(self) -> Float[Tensor, " timesteps"]:
        """Noise level at each timestep in variance exploding space, float64, rising."""
        alphas = self.alphas_cumprod.clamp(min=SMALLEST_ALPHA)
        return ((1 - alphas) / alphas).sqrt()

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Int[Tensor, " batch"]) -> Latents:
        """Diffuse latents to their timesteps, in variance preserving space (2006.11239, equation 4)."""
        signal, scale = self._signal_and_noise(latents, timesteps)
        return signal * latents + scale * noise

    def target(self, latents: Latents, noise: Latents, timesteps: Int[Tensor, " batch"]) -> Latents:
        """Give what the model should predict: the noise, or v = sqrt(a) noise - sqrt(1 - a) latents."""
        if self.prediction_type == "epsilon":
            return noise
        signal, scale = self._signal_and_noise(latents, timesteps)
        return signal * noise - scale * latents

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Signal-to-noise ratio a / (1 - a), float32, on the device of ``timesteps``."""
        alphas = self.alphas_cumprod
        return (alphas / (1 - alphas)).float().to(timesteps.device)[timesteps]

    def _signal_and_noise(self, latents: Latents, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod
        tables = torch.stack([alphas.sqrt(), (1 - alphas).sqrt()]).to(latents)
        signal, scale = tables[:, timesteps.to(latents.device), None, None, None]
        return signal, scale


def _cosine_betas(schedule: NoiseSchedule) -> Tensor:
    """Squared cosine (2102.09672, equation 17), betas capped at 0.999."""
    count = schedule.num_train_timesteps
    time = torch.arange(count + 1, dtype=torch.float64) / count
    alphas = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alphas[1:] / alphas[:-1]).clamp(max=0.999)


def _linear_betas(schedule: NoiseSchedule, power: float = 1.0) -> Tensor:
    start, end = schedule.beta_start ** (1 / power), schedule.beta_end ** (1 / power)
    return torch.linspace(start, end, schedule.num_train_timesteps, dtype=torch.float64) ** power


BETA_SCHEDULES: dict[str, Callable[[NoiseSchedule], Tensor]] = {
    "linear": _linear_betas,
    "scaled_linear": lambda schedule: _linear_betas(schedule, power=2.0),
    "squaredcos_cap_v2": _cosine_betas,
}


@lru_cache(maxsize=8)
def _alphas_cumprod(schedule: NoiseSchedule) -> Tensor:
    alphas = (1 - BETA_SCHEDULES[schedule.beta_schedule](schedule)).cumprod(0)
    if not schedule.zero_terminal_snr:
        return alphas
    # 2305.08891, algorithm 1: shift the square roots so that the last is zero, scale so that the first stays.
    roots = alphas.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What a sampler's inventors, and diffusers after them, take for granted about its steps.

    Attributes:
        intervals: ``n`` steps are ``n + 1`` points of which the last is dropped, not ``n`` points.
        whole_timesteps: timesteps are whole numbers.
        whole_range: a curve runs over all sigmas of the model, not from the spacing's first to its last.
        unit_start: the first latents are ``noise * sqrt(sigma^2 + 1)`` whatever the spacing (unit variance in
            variance preserving space). Else only for ``leading``, which starts below the last timestep, and
            ``noise * sigma`` elsewhere.
        schedule: the schedule that the sampler was made for, where that is not the model's.
    """

    intervals: bool = False
    whole_timesteps: bool = False
    whole_range: bool = False
    unit_start: bool = False
    schedule: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSchedule:
    """The levels of one run.

    Attributes:
        sigmas: one more than there are steps, falling, the last one 0.0.
        timesteps: the model's time at every sigma but the last; may be fractional.
        initial_scale: factor from unit noise to the first latents.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    initial_scale: float


def steps_for(
    noise_schedule: NoiseSchedule, steps: int, *, grid: Grid = Grid(), schedule: str | None = None
) -> StepSchedule:
    """Lay out the steps of one run.

    Args:
        noise_schedule: the model's.
        steps: 1 to the number of training timesteps; some schedules run out of distinct levels earlier.
        grid: the sampler's.
        schedule: canonical name of a spacing or a curve; None is the sampler's own, else the model's own.

    Raises:
        InputError: no such schedule, or more steps than it has distinct levels.
    """
    name = schedule or grid.schedule or noise_schedule.curve or noise_schedule.timestep_spacing
    if name not in SPACINGS and name not in CURVES:
        raise unknown("schedule", name, [*SPACINGS, *CURVES])
    table = noise_schedule.sigmas.tolist()
    if not 1 <= steps <= len(table):
        raise InputError(f"steps must be 1 to {len(table)}, got {steps}")

    spacing = noise_schedule.timestep_spacing if name in CURVES else name
    timesteps = SPACINGS[spacing](steps, noise_schedule, grid.intervals)
    if grid.whole_timesteps:
        timesteps = [float(round(timestep)) for timestep in timesteps]
    sigmas = [_interpolate(timestep, table) for timestep in timesteps]
    if name in CURVES:
        curve, to_whole = CURVES[name]
        ends = (table[-1], table[0]) if grid.whole_range else (sigmas[0], sigmas[-1])
        sigmas = curve(steps, *ends)
        timesteps = [timestep_of(sigma, table) for sigma in sigmas]
        if grid.whole_timesteps:
            timesteps = [float(to_whole(timestep)) for timestep in timesteps]
    if any(later >= sooner for sooner, later in pairwise(sigmas)):
        raise InputError(f"schedule {name!r} has no {steps} distinct noise levels; use fewer steps")

    unit_start = grid.unit_start or spacing == "leading"
    return StepSchedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(timesteps),
        initial_scale=math.hypot(sigmas[0], 1.0) if unit_start else sigmas[0],
    )


def _interpolate(position: float, table: Sequence[float]) -> float:
    """Read a table between its entries, linearly; positions outside it give its ends."""
    low = min(max(int(position), 0), len(table) - 2)
    share = min(max(position - low, 0.0), 1.0)
    return table[low] * (1 - share) + table[low + 1] * share


def timestep_of(sigma: float, table: Sequence[float]) -> float:
    """Find the timestep of a sigma, between two of the model's by interpolation in log sigma.

    Args:
        sigma: above 0; outside the table it gives the table's ends.
        table: the model's sigmas, rising.
    """
    low = min(max(bisect(table, sigma) - 1, 0), len(table) - 2)
    share = math.log(sigma / table[low]) / math.log(table[low + 1] / table[low])
    return low + min(max(share, 0.0), 1.0)


# Spacings: 2305.08891, table 2. Each gives falling timesteps for n steps.


def _leading(steps: int, schedule: NoiseSchedule, intervals: bool) -> list[float]:
    stride = schedule.num_train_timesteps // (steps + intervals)
    first = steps - 1 + intervals
    return [float((first - i) * stride + schedule.steps_offset) for i in range(steps)]


def _trailing(steps: int, schedule: NoiseSchedule, intervals: bool) -> list[float]:
    count = schedule.num_train_timesteps
    return [float(round(count - i * (count / steps)) - 1) for i in range(steps)]


def _linspace(steps: int, schedule: NoiseSchedule, intervals: bool) -> list[float]:
    last = schedule.num_train_timesteps - 1
    gaps = max(steps - 1 + intervals, 1)
    return [last * (gaps - i) / gaps for i in range(steps)]


def _simple(steps: int, schedule: NoiseSchedule, intervals: bool) -> list[float]:
    """ComfyUI's: every so many entries of the table, counted from the noisy end."""
    count = schedule.num_train_timesteps
    return [float(count - 1 - i * count // steps) for i in range(steps)]


LCM_TIMESTEPS = 50
"""Latent consistency models are distilled on this many evenly spaced timesteps (2310.04378, section 4.3)."""


def _lcm(steps: int, schedule: NoiseSchedule, intervals: bool) -> list[float]:
    """Evenly spaced ones of the timesteps that consistency distillation trains."""
    if steps > LCM_TIMESTEPS:
        raise InputError(f"steps must be 1 to {LCM_TIMESTEPS} with schedule 'lcm', got {steps}")
    stride = schedule.num_train_timesteps // LCM_TIMESTEPS
    return [float((LCM_TIMESTEPS - i * LCM_TIMESTEPS // steps) * stride - 1) for i in range(steps)]


SPACINGS: dict[str, Callable[[int, NoiseSchedule, bool], list[float]]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "normal": lambda steps, schedule, intervals: _linspace(steps, schedule, False),
    "sgm_uniform": lambda steps, schedule, intervals: _linspace(steps, schedule, True),
    "simple": _simple,
    "lcm": _lcm,
}


# Curves: n sigmas from the first to the last one inclusive.


def _along(steps: int, curve: Callable[[float], float]) -> list[float]:
    return [curve(i / max(steps - 1, 1)) for i in range(steps)]


def _karras(steps: int, first: float, last: float) -> list[float]:
    """Even steps in sigma^(1/7) (2206.00364, equation 5, rho = 7)."""
    root, end = first ** (1 / 7), last ** (1 / 7)
    return _along(steps, lambda share: (root + share * (end - root)) ** 7)


def _exponential(steps: int, first: float, last: float) -> list[float]:
    """Even steps in log sigma (2211.01095, section 4)."""
    return _along(steps, lambda share: first * (last / first) ** share)


def _beta(steps: int, first: float, last: float) -> list[float]:
    """Quantiles of Beta(0.6, 0.6), dense at both ends (2407.12173), taken over sigma."""
    return _along(steps, lambda share: last + (first - last) * _beta_quantile(1 - share))


def _beta_quantile(probability: float, shape: float = 0.6) -> float:
    """Invert the symmetric Beta distribution function by bisection of its power series (DLMF 8.17.7)."""
    if probability > 0.5:
        return 1 - _beta_quantile(1 - probability, shape)

    def distribution(x: float) -> float:
        total, factor = 0.0, 1.0
        for n in range(64):  # x <= 1/2: each term is less than half of the one before
            total += factor / (shape + n)
            factor *= (n + 1 - shape) / (n + 1) * x
        return x**shape * total * math.gamma(2 * shape) / math.gamma(shape) ** 2

    low, high = 0.0, 0.5
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if distribution(middle) < probability else (low, middle)
    return high


# Each with diffusers' way to a whole timestep: it rounds after Karras only, and truncates after the others.
CURVES: dict[str, tuple[Callable[[int, float, float], list[float]], Callable[[float], int]]] = {
    "karras": (_karras, round),
    "exponential": (_exponential, math.floor),
    "beta": (_beta, math.floor),
}
