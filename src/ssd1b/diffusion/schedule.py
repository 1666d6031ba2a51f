"""Noise levels: those a model was trained on, and those that a run visits.

Training is variance preserving: ``x = sqrt(a) x0 + sqrt(1 - a) noise``, with ``a`` the cumulative alpha of a
timestep. Sampling is variance exploding: ``x = x0 + sigma * noise``. They differ only by the factor
``sqrt(sigma^2 + 1)``, and ``sigma^2 = (1 - a) / a`` (Karras et al. 2206.00364, table 1).

The grids follow diffusers, so that the same settings give the same image; docs/adr/0002-samplers.md lists
the differences and their reasons.
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
"""Replaces a cumulative alpha of zero when sampling, so that the first sigma is 4096 and not infinite."""


def _cosine_betas(timesteps: int, start: float, end: float) -> Tensor:
    """Squared cosine (2102.09672, equation 17), betas capped at 0.999; ignores ``start`` and ``end``."""
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
"""``betas(timesteps, beta_start, beta_end)`` -> the variance added at each timestep."""

Beta = Annotated[float, Range(1e-8, 0.999)]

_TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """Noise schedule of a model's training, and the default sampling; the defaults are SDXL's.

    Attributes:
        num_train_timesteps: number of timesteps; 0 has the least noise.
        beta_schedule: ``linear``, ``scaled_linear`` (linear in the square root) or ``squaredcos_cap_v2``.
        beta_start: variance added at timestep 0; unused by ``squaredcos_cap_v2``, as is ``beta_end``.
        beta_end: variance added at the last timestep.
        prediction_type: ``epsilon``, or ``v_prediction`` (2202.00512, appendix D).
        rescale_betas_zero_snr: rescale betas to zero terminal signal-to-noise ratio, so that the last
            timestep is pure noise (2305.08891, algorithm 1).
        timestep_spacing: ``leading``, ``trailing`` or ``linspace`` (2305.08891, table 2).
        steps_offset: added to the timesteps of ``leading``.
        curve: ``karras``, ``exponential``, ``beta``, or None to sample at the spacing's sigmas.
        sampler: canonical name of the default sampler.

    Raises:
        InputError: a value is not allowed.
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

        Settings that describe the training must be known and supported. Those that only tune a sampler are
        ignored, because the user chooses the sampler; if the file's own is not available, the nearest one
        becomes the default.

        Raises:
            InputError: a setting is missing, unknown, or has an unsupported value.
        """
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        name = config.get("_class_name", "EulerDiscreteScheduler")
        if not isinstance(name, str):
            raise InputError(f"the scheduler's class must be a string, got {shown(name)}")
        sampler = sampler_names.resolve_class(name)
        stand_in = sampler_names.nearest_of_class(name) is not None
        for key in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end"):
            if key not in given:
                raise InputError(f"scheduler setting {key!r} is missing")
        for key, value in given.items():
            # If the sampler was replaced by the nearest one, its settings have no meaning.
            if key not in _KNOWN and not stand_in:
                raise unknown("scheduler setting", key, _KNOWN)
            supported = _SUPPORTED_ONLY_AS.get(key, (value,))
            if not any(value is each or value == each for each in supported):  # NaN equals nothing
                raise InputError(f"scheduler setting {key!r} must be {supported[0]!r}, got {shown(value)}")
            if key in _FLAGS and not isinstance(value, bool | None):
                raise InputError(f"scheduler setting {key!r} must be true or false, got {shown(value)}")
        if sampler == "dpmpp_2m" and str(given.get("algorithm_type")).startswith("sde"):
            sampler = "dpmpp_2m_sde"
        fields = {key: given[key] for key in _FIELDS if key in given}
        # Files older than timestep_spacing and steps_offset get what diffusers did at the time.
        old = {"timestep_spacing": "leading" if sampler in _ONCE_LEADING else "linspace", "steps_offset": 0}
        curve = next((curve for curve in CURVES if given.get(_CURVE_SETTING[curve])), None)
        values: dict[str, Any] = old | fields
        return cls(**values, curve=curve, sampler=sampler)

    def to_config(self) -> dict[str, Any]:
        """Make a ``scheduler_config.json`` for diffusers; ``from_config`` reads it back equal."""
        config = {"_class_name": sampler_names.SAMPLERS[self.sampler].diffusers}
        config |= {field: getattr(self, field) for field in _FIELDS}
        config |= {setting: self.curve == curve for curve, setting in _CURVE_SETTING.items()}
        if self.sampler == "dpmpp_2m_sde":
            config["algorithm_type"] = "sde-dpmsolver++"
        # Some of diffusers' classes clip latents by default.
        return config | {"clip_sample": False}

    @property
    def alphas_cumprod(self) -> Float[Tensor, " timesteps"]:
        """Cumulative alpha of each timestep, float64, falling; the last is 0 with zero terminal SNR."""
        return _alphas_cumprod(self)

    @property
    def sigmas(self) -> Float[Tensor, " timesteps"]:
        """Noise level of each timestep in variance exploding space, float64, rising."""
        alphas = self.alphas_cumprod.clamp(min=SMALLEST_ALPHA)
        return ((1 - alphas) / alphas).sqrt()

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Int[Tensor, " batch"]) -> Latents:
        """Diffuse latents to their timesteps, in variance preserving space (2006.11239, equation 4)."""
        signal, scale = self._signal_and_noise(latents, timesteps)
        return (signal * latents + scale * noise).to(latents.dtype)

    def target(self, latents: Latents, noise: Latents, timesteps: Int[Tensor, " batch"]) -> Latents:
        """Compute the training target: the noise, or v = sqrt(a) noise - sqrt(1 - a) latents."""
        if self.prediction_type == "epsilon":
            return noise
        signal, scale = self._signal_and_noise(latents, timesteps)
        return (signal * noise - scale * latents).to(latents.dtype)

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Look up signal-to-noise ratios a / (1 - a), float32, on the device of ``timesteps``."""
        alphas = self.alphas_cumprod
        return (alphas / (1 - alphas)).float().to(timesteps.device)[timesteps]

    def _signal_and_noise(self, latents: Latents, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod
        # bfloat16's eight bits would shift the noise level, so only the sum is rounded.
        dtype = torch.promote_types(latents.dtype, torch.float32)
        tables = torch.stack([alphas.sqrt(), (1 - alphas).sqrt()]).to(latents.device, dtype)
        signal, scale = tables[:, timesteps.to(latents.device), None, None, None]
        return signal, scale


# diffusers' names: fields have the same ones, curves are flags.
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
_ONCE_LEADING = ("ddim", "ddpm", "lcm", "tcd")


@lru_cache(maxsize=8)
def _alphas_cumprod(schedule: NoiseSchedule) -> Tensor:
    betas = BETA_SCHEDULES[schedule.beta_schedule]
    alphas = 1 - betas(schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end)
    alphas = alphas.cumprod(0)
    if not schedule.rescale_betas_zero_snr:
        return alphas
    # 2305.08891, algorithm 1: shift the square roots to end at zero, and scale them to keep the first.
    roots = alphas.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A sampler's conventions for laying out its steps, as published and as in diffusers.

    Attributes:
        intervals: for ``n`` steps, take ``n + 1`` points and drop the last, instead of ``n`` points.
        whole_timesteps: round timesteps to integers.
        whole_range: a curve covers all sigmas of the model, not only those from the spacing's first to last.
        unit_start: the initial latents are ``noise * sqrt(sigma^2 + 1)`` with any spacing (unit variance in
            variance preserving space). Otherwise only with ``leading``, which starts below the last
            timestep, and ``noise * sigma`` with the others.
        schedule: the schedule that the sampler was designed for; None is the model's.
    """

    intervals: bool = False
    whole_timesteps: bool = False
    whole_range: bool = False
    unit_start: bool = False
    schedule: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSchedule:
    """Noise levels of one run.

    Attributes:
        sigmas: one more than the number of steps, falling, the last one 0.0.
        timesteps: the model's time at every sigma but the last; may be fractional.
        initial_scale: factor from unit noise to the initial latents.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    initial_scale: float

    def last(self, steps: int) -> "StepSchedule":
        """Keep only the last steps, at least 1; ``initial_scale`` is then that of noise on a picture."""
        if steps >= len(self.timesteps):
            return self
        sigmas = self.sigmas[-steps - 1 :]
        return StepSchedule(sigmas=sigmas, timesteps=self.timesteps[-steps:], initial_scale=sigmas[0])


def steps_for(
    noise_schedule: NoiseSchedule, steps: int, *, grid: Grid = Grid(), schedule: str | None = None,
    timesteps: Sequence[int] = (),
) -> StepSchedule:  # fmt: skip
    """Compute the noise levels of a run.

    Args:
        noise_schedule: the model's noise schedule.
        steps: 1 to the number of training timesteps; some schedules run out of distinct levels earlier.
        grid: the sampler's grid.
        schedule: canonical name of a spacing or a curve; None is the sampler's, or else the model's.
        timesteps: falling, one for each step; they replace the schedule.

    Raises:
        InputError: the schedule is unknown, or has fewer distinct levels than steps; or a timestep is beyond
            the model's.
    """
    if timesteps:
        return _given_timesteps(noise_schedule, timesteps, grid)
    name = _in_effect(noise_schedule, grid, schedule)
    if name not in SPACINGS and name not in CURVES:
        raise unknown("schedule", name, [*SPACINGS, *CURVES])
    table = noise_schedule.sigmas.tolist()
    if not 1 <= steps <= len(table):
        raise InputError(f"steps must be 1 to {len(table)}, got {steps}")

    spacing = noise_schedule.timestep_spacing if name in CURVES else name
    points = SPACINGS[spacing](steps, len(table), noise_schedule.steps_offset, grid.intervals)
    if grid.whole_timesteps:
        points = [float(round(point)) for point in points]
    sigmas = [_interpolate(point, table) for point in points]
    if name in CURVES:
        first, last = (table[-1], table[0]) if grid.whole_range else (sigmas[0], sigmas[-1])
        sigmas = CURVES[name](steps, first, last)
        points = [timestep_of(sigma, table) for sigma in sigmas]
        if grid.whole_timesteps:
            points = [float(round(point)) for point in points]
    if any(following >= sigma for sigma, following in pairwise(sigmas)):
        raise InputError(f"schedule {name!r} has fewer than {steps} distinct noise levels: use fewer steps")

    unit_start = grid.unit_start or spacing == "leading"
    return StepSchedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(points),
        initial_scale=math.hypot(sigmas[0], 1.0) if unit_start else sigmas[0],
    )


def _given_timesteps(noise_schedule: NoiseSchedule, timesteps: Sequence[int], grid: Grid) -> StepSchedule:
    table = noise_schedule.sigmas.tolist()
    if timesteps[0] >= len(table):
        raise InputError(f"timesteps begin with {timesteps[0]}: the model's are 0 to {len(table) - 1}")
    sigmas = [table[timestep] for timestep in timesteps]
    unit_start = grid.unit_start or noise_schedule.timestep_spacing == "leading"
    return StepSchedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(map(float, timesteps)),
        initial_scale=math.hypot(sigmas[0], 1.0) if unit_start else sigmas[0],
    )


def lower_levels(noise_schedule: NoiseSchedule, steps: StepSchedule, gamma: float) -> tuple[float, ...]:
    """Return the sigma that each step of TCD goes down to before noise is added again.

    2402.19159, algorithm 4: its timestep is the share ``1 - gamma`` of the next one, rounded down as in
    diffusers' ``TCDScheduler``. There the last step ends at timestep 0, with a sigma of 0.03 in SDXL.

    Args:
        noise_schedule: the model's noise schedule.
        steps: of the run.
        gamma: 0 adds no noise, 1 goes down to timestep 0 in each step.
    """
    table = noise_schedule.sigmas.tolist()
    return tuple(table[math.floor((1 - gamma) * following)] for following in (*steps.timesteps[1:], 0.0))


def _in_effect(noise_schedule: NoiseSchedule, grid: Grid, schedule: str | None) -> str:
    return schedule or grid.schedule or noise_schedule.curve or noise_schedule.timestep_spacing


def drawn_schedule(noise_schedule: NoiseSchedule, grid: Grid, schedule: str | None) -> str:
    """Name the schedule that ``steps_for`` uses, with a name that means the same for every sampler.

    ``linspace`` depends on the sampler's grid and becomes ``sgm_uniform`` or ``normal``.
    """
    name = _in_effect(noise_schedule, grid, schedule)
    if name == "linspace":
        return "sgm_uniform" if grid.intervals else "normal"
    return name


def _interpolate(position: float, table: Sequence[float]) -> float:
    """Interpolate linearly between a table's entries; positions outside it give its ends."""
    low = min(max(int(position), 0), len(table) - 2)
    share = min(max(position - low, 0.0), 1.0)
    return table[low] * (1 - share) + table[low + 1] * share


def timestep_of(sigma: float, table: Sequence[float]) -> float:
    """Find the timestep of a sigma by interpolation in log sigma.

    Args:
        sigma: above 0; values outside the table give its ends.
        table: the model's sigmas, rising.
    """
    low = min(max(bisect(table, sigma) - 1, 0), len(table) - 2)
    share = math.log(sigma / table[low]) / math.log(table[low + 1] / table[low])
    return low + min(max(share, 0.0), 1.0)
