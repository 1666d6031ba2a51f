"""Noise levels: those the model was trained on, and those that one run visits.

Two spaces are in use. Training is variance preserving: ``x = sqrt(a) x0 + sqrt(1 - a) noise``, with ``a`` the
cumulated alpha of a timestep. Sampling is variance exploding: ``x = x0 + sigma * noise``. They differ by the
factor ``sqrt(sigma^2 + 1)`` alone, and ``sigma^2 = (1 - a) / a`` (Karras et al. 2206.00364, table 1).

The grids follow diffusers, so that the same settings give the same picture; docs/adr/0002-samplers.md lists
what was done differently, and why.
"""

import math
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssd1b import sampler_names
from ssd1b.diffusion.spacing import CURVES, SPACINGS
from ssd1b.errors import InputError, shown, unknown
from ssd1b.tensors import Latents
from ssd1b.validation import Flag, OneOf, Range, validated

SMALLEST_ALPHA = 2.0**-24
"""Stands for a cumulated alpha of zero when sampling, so that the first sigma is 4096 and not infinite."""


def _cosine_betas(timesteps: int, start: float, end: float) -> Tensor:
    """Squared cosine (2102.09672, equation 17), betas capped at 0.999; without use for start and end."""
    time = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    alphas = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alphas[1:] / alphas[:-1]).clamp(max=0.999)


def _linear_betas(timesteps: int, start: float, end: float, power: float = 1.0) -> Tensor:
    return torch.linspace(start ** (1 / power), end ** (1 / power), timesteps, dtype=torch.float64) ** power


BETA_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear_betas,
    "scaled_linear": partial(_linear_betas, power=2.0),
    "squaredcos_cap_v2": _cosine_betas,
}
"""The variance added at each timestep, from the number of timesteps, ``beta_start`` and ``beta_end``."""

Beta = Annotated[float, Range(1e-8, 0.999)]

_TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """How a model was trained to see noise, and how its makers sample it; the defaults are SDXL's.

    Attributes:
        num_train_timesteps: timesteps 0 (least noise) to this minus one.
        beta_schedule: ``linear``, ``scaled_linear`` (linear in the square root) or ``squaredcos_cap_v2``.
        beta_start: variance added at timestep 0; unused by ``squaredcos_cap_v2``, as is ``beta_end``.
        beta_end: variance added at the last timestep.
        prediction_type: what the model predicts: ``epsilon``, or ``v_prediction`` (2202.00512, appendix D).
        rescale_betas_zero_snr: betas rescaled to zero terminal signal-to-noise ratio, so that the last
            timestep is pure noise (2305.08891, algorithm 1).
        timestep_spacing: ``leading``, ``trailing`` or ``linspace`` (2305.08891, table 2).
        steps_offset: added to the timesteps of ``leading``.
        curve: ``karras``, ``exponential``, ``beta``, or None to sample at the spacing's own sigmas.
        sampler: canonical name.

    Raises:
        InputError: a value outside these.
    """

    num_train_timesteps: Annotated[int, Range(2, 1_000_000)] = 1000
    beta_schedule: Annotated[str, OneOf("beta_schedule", BETA_SCHEDULES)] = "scaled_linear"
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    prediction_type: Annotated[str, OneOf("prediction_type", ("epsilon", "v_prediction"))] = "epsilon"
    rescale_betas_zero_snr: Flag = False
    timestep_spacing: Annotated[str, OneOf("timestep_spacing", _TIMESTEP_SPACINGS)] = "leading"
    steps_offset: Annotated[int, Range(0, 1000)] = 1
    curve: Annotated[str, OneOf("curve", CURVES)] | None = None
    sampler: Annotated[str, OneOf("sampler", sampler_names.SAMPLERS)] = "euler"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Read a diffusers ``scheduler_config.json``.

        Whatever says how the model was trained must be understood. What only tunes a sampler is let pass, for
        samplers are the user's to choose; where the one named is missing here, the nearest is the default.

        Raises:
            InputError: a setting is missing, unknown, or has a value that is not supported.
        """
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        name = config.get("_class_name", "EulerDiscreteScheduler")
        if not isinstance(name, str):
            raise InputError(f"the scheduler's class must be a text, got {shown(name)}")
        sampler = sampler_names.resolve_class(name)
        stand_in = sampler_names.nearest_of_class(name) is not None
        for key in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end"):
            if key not in given:
                raise InputError(f"scheduler setting {key!r} is missing")
        for key, value in given.items():
            # Where another sampler stands in, settings of the one that is missing have nothing to tune.
            if key not in _KNOWN and not stand_in:
                raise unknown("scheduler setting", key, _KNOWN)
            supported = _SUPPORTED_ONLY_AS.get(key, (value,))
            if not any(value is each or value == each for each in supported):  # NaN is only itself
                raise InputError(f"scheduler setting {key!r} must be {supported[0]!r}, got {shown(value)}")
            if key in _FLAGS and not isinstance(value, bool | None):
                raise InputError(f"scheduler setting {key!r} must be true or false, got {shown(value)}")
        if sampler == "dpmpp_2m" and str(given.get("algorithm_type")).startswith("sde"):
            sampler = "dpmpp_2m_sde"
        fields = {key: given[key] for key in _FIELDS if key in given}
        # Files from before timestep_spacing and steps_offset existed mean what diffusers did then.
        old = {"timestep_spacing": "leading" if sampler in _ONCE_LEADING else "linspace", "steps_offset": 0}
        curve = next((curve for curve in CURVES if given.get(_CURVE_SETTING[curve])), None)
        return cls(**(old | fields), curve=curve, sampler=sampler)

    def to_config(self) -> dict[str, Any]:
        """Write a ``scheduler_config.json`` that diffusers reads, and ``from_config`` reads back equal."""
        config = {"_class_name": sampler_names.SAMPLERS[self.sampler].diffusers}
        config |= {field: getattr(self, field) for field in _FIELDS}
        config |= {setting: self.curve == curve for curve, setting in _CURVE_SETTING.items()}
        if self.sampler == "dpmpp_2m_sde":
            config["algorithm_type"] = "sde-dpmsolver++"
        # Some classes of diffusers clip latents where nobody tells them not to.
        return config | {"clip_sample": False}

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
        return (signal * latents + scale * noise).to(latents.dtype)

    def target(self, latents: Latents, noise: Latents, timesteps: Int[Tensor, " batch"]) -> Latents:
        """Give what the model should predict: the noise, or v = sqrt(a) noise - sqrt(1 - a) latents."""
        if self.prediction_type == "epsilon":
            return noise
        signal, scale = self._signal_and_noise(latents, timesteps)
        return (signal * noise - scale * latents).to(latents.dtype)

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Signal-to-noise ratio a / (1 - a), float32, on the device of ``timesteps``."""
        alphas = self.alphas_cumprod
        return (alphas / (1 - alphas)).float().to(timesteps.device)[timesteps]

    def _signal_and_noise(self, latents: Latents, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod
        # Eight bits of bfloat16 would move the noise level; the sum is rounded instead.
        dtype = torch.promote_types(latents.dtype, torch.float32)
        tables = torch.stack([alphas.sqrt(), (1 - alphas).sqrt()]).to(latents.device, dtype)
        signal, scale = tables[:, timesteps.to(latents.device), None, None, None]
        return signal, scale


# What diffusers calls the same things: our fields have its names, the curves are flags.
_FIELDS = (
    "num_train_timesteps", "beta_start", "beta_end", "steps_offset",
    "beta_schedule", "prediction_type", "rescale_betas_zero_snr", "timestep_spacing",
)  # fmt: skip
_CURVE_SETTING = {curve: f"use_{curve}_sigmas" for curve in CURVES}
_SUPPORTED_ONLY_AS: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "shift_terminal": (None,),
    **dict.fromkeys(
        ("clip_sample", "thresholding", "use_flow_sigmas", "use_dynamic_shifting", "use_lu_lambdas"),
        (False, None),
    ),
}
_TUNES_A_SAMPLER = (
    "algorithm_type", "clip_sample_range", "disable_corrector", "dynamic_thresholding_ratio",
    "euler_at_final", "final_sigmas_type", "flow_shift", "lambda_min_clipped", "lower_order_final",
    "noise_sampler_seed", "original_inference_steps", "predict_x0", "sample_max_value", "set_alpha_to_one",
    "skip_prk_steps", "solver_order", "solver_p", "solver_type", "time_shift_type", "timestep_scaling",
)  # fmt: skip
_KNOWN = {*_FIELDS, *_CURVE_SETTING.values(), *_SUPPORTED_ONLY_AS, *_TUNES_A_SAMPLER}
_FLAGS = {*_CURVE_SETTING.values(), "rescale_betas_zero_snr"}
_ONCE_LEADING = ("ddim", "ddpm", "lcm")


@lru_cache(maxsize=8)
def _alphas_cumprod(schedule: NoiseSchedule) -> Tensor:
    betas = BETA_SCHEDULES[schedule.beta_schedule]
    alphas = 1 - betas(schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end)
    alphas = alphas.cumprod(0)
    if not schedule.rescale_betas_zero_snr:
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
    name = _in_effect(noise_schedule, grid, schedule)
    if name not in SPACINGS and name not in CURVES:
        raise unknown("schedule", name, [*SPACINGS, *CURVES])
    table = noise_schedule.sigmas.tolist()
    if not 1 <= steps <= len(table):
        raise InputError(f"steps must be 1 to {len(table)}, got {steps}")

    spacing = noise_schedule.timestep_spacing if name in CURVES else name
    timesteps = SPACINGS[spacing](steps, len(table), noise_schedule.steps_offset, grid.intervals)
    if grid.whole_timesteps:
        timesteps = [float(round(timestep)) for timestep in timesteps]
    sigmas = [_interpolate(timestep, table) for timestep in timesteps]
    if name in CURVES:
        first, last = (table[-1], table[0]) if grid.whole_range else (sigmas[0], sigmas[-1])
        sigmas = CURVES[name](steps, first, last)
        timesteps = [timestep_of(sigma, table) for sigma in sigmas]
        if grid.whole_timesteps:
            timesteps = [float(round(timestep)) for timestep in timesteps]
    if any(later >= sooner for sooner, later in pairwise(sigmas)):
        raise InputError(f"schedule {name!r} has no {steps} distinct noise levels; use fewer steps")

    unit_start = grid.unit_start or spacing == "leading"
    return StepSchedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(timesteps),
        initial_scale=math.hypot(sigmas[0], 1.0) if unit_start else sigmas[0],
    )


def _in_effect(noise_schedule: NoiseSchedule, grid: Grid, schedule: str | None) -> str:
    return schedule or grid.schedule or noise_schedule.curve or noise_schedule.timestep_spacing


def drawn_schedule(noise_schedule: NoiseSchedule, grid: Grid, schedule: str | None) -> str:
    """Name the schedule that ``steps_for`` takes, so that it says the same of every sampler.

    ``linspace`` depends on the sampler's grid; ``normal`` and ``sgm_uniform`` are the two that it may be.
    """
    name = _in_effect(noise_schedule, grid, schedule)
    if name == "linspace":
        return "sgm_uniform" if grid.intervals else "normal"
    return name


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
