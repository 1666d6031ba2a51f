"""The same settings give the same trajectory as in diffusers, state by state.

The model is small, fixed, nonlinear and knows the time; noise is injected on both sides. What was done
differently on purpose is in docs/adr/0002-samplers.md, and is left out or relaxed here with a word on why.
"""

import itertools
import math
import sys
import types

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg
from diffusers.training_utils import compute_snr
from scipy.stats import beta

from ssd1b.diffusion.denoiser import denoiser, rescaled
from ssd1b.diffusion.samplers import SAMPLERS
from ssd1b.diffusion.schedule import NoiseSchedule, lower_levels, steps_for
from ssd1b.diffusion.spacing import CURVES, beta_quantile

# diffusers' own conversions from torch to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = (1, 2, 5, 20)
SPACINGS = ("leading", "trailing", "linspace")
SHAPE = (1, 4, 4, 4)


def sde_scheduler():
    """Import DPMSolverSDEScheduler without torchsde, whose only use, its Brownian tree, is replaced below."""
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    return DPMSolverSDEScheduler


ORACLES = {
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "dpmpp_2m_sde": DPMSolverMultistepScheduler,
    "dpmpp_sde": sde_scheduler(),
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}
WITHOUT_CURVES = ("euler_ancestral", "ddim", "ddpm", "lcm", "tcd")
WITHOUT_ZERO_SNR = ("heun", "dpmpp_sde")

WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) / 2


def model(x, timestep):
    """Predict something smooth, nonlinear and different at every time."""
    time = float(timestep)
    return torch.tanh(torch.einsum("ij,bjhw->bihw", WEIGHT, x) * (1 + time / 2000)) + 0.1 * math.sin(
        time / 50
    )


def draws():
    """Return the noise of the steps, the same on both sides, whoever asks and however."""
    generator = torch.Generator().manual_seed(3)
    return lambda *args, **kwargs: torch.randn(SHAPE, generator=generator)


class BrownianPath:
    """Stand in for the Brownian tree: increments to the middle and to the end of a step, scaled to one."""

    def __init__(self, *args):
        self.draw, self.half = draws(), None

    def __call__(self, sigma, sigma_next):
        if self.half is None:
            self.half = (float(sigma_next), self.draw())
            return self.half[1]
        (middle, first), self.half = self.half, None
        share = (float(sigma) - middle) / (float(sigma) - float(sigma_next))
        return math.sqrt(share) * first + math.sqrt(1 - share) * self.draw()


def their_trajectory(name, schedule, count, start, monkeypatch, timesteps=None, **step_options):
    """Return the state after every step, in variance preserving space."""
    scheduler = ORACLES[name].from_config(schedule.to_config())
    scheduler.set_timesteps(count)
    module = sys.modules[ORACLES[name].__module__]
    monkeypatch.setattr(module, "randn_tensor", draws(), raising=False)
    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", BrownianPath, raising=False)
    if timesteps is not None:
        scheduler.timesteps = torch.tensor(timesteps).long()
        scheduler.set_begin_index(0)
    x, states = start * scheduler.init_noise_sigma, []
    for timestep in scheduler.timesteps:
        prediction = model(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(prediction, timestep, x, return_dict=False, **step_options)[0]
        states.append(x)
    if scheduler.init_noise_sigma == 1.0:
        return states
    if scheduler.order == 2:  # a step is two calls, the last one is one
        states = [*states[1:-1:2], states[-1]]
    levels = scheduler.sigmas[1 :: scheduler.order].tolist()
    return [state / math.hypot(level, 1) for state, level in zip(states, levels, strict=True)]


def our_trajectory(name, schedule, count, start, **options):
    sampler = SAMPLERS[name]
    steps = steps_for(schedule, count, grid=sampler.grid)
    denoise = denoiser(model, schedule, steps)
    if sampler.gamma:
        options = {"lower": lower_levels(schedule, steps, options.get("gamma", 0.3))}
    run = sampler.run(denoise, start * steps.initial_scale, steps.sigmas, draws(), **options)
    return [step.latents / math.hypot(step.sigma, 1) for step in run]


def assert_equal(ours, theirs, count, tolerance):
    assert len(ours) == len(theirs) == count
    for index, (mine, expected) in enumerate(zip(ours, theirs, strict=True)):
        error = ((mine - expected).abs().max() / expected.abs().max()).item()
        assert error <= tolerance, f"step {index + 1} of {count}: relative error {error:.1e}"


def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))


def counts_for(name, spacing):
    """Leave out linspace with one step: it starts at timestep 0 in diffusers, from next to no noise."""
    starts_late = spacing == "linspace" and not SAMPLERS[name].grid.intervals and name not in ("lcm", "tcd")
    return STEPS[1:] if starts_late else STEPS


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "spacing"),
    # From t, diffusers' DDIM goes to t - 1000 // n, which is no timestep of linspace; ours goes to the next.
    [pair for pair in itertools.product(ORACLES, SPACINGS) if pair != ("ddim", "linspace")],
)
def test_every_sampler_on_every_spacing(name, spacing, prediction_type, monkeypatch):
    schedule = NoiseSchedule(sampler=name, timestep_spacing=spacing, prediction_type=prediction_type)
    for count in counts_for(name, spacing):
        theirs = their_trajectory(name, schedule, count, start(), monkeypatch)
        assert_equal(our_trajectory(name, schedule, count, start()), theirs, count, 2e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", [name for name in ORACLES if name not in WITHOUT_CURVES])
def test_every_sampler_on_every_curve(name, spacing, curve, prediction_type, monkeypatch):
    schedule = NoiseSchedule(
        sampler=name, timestep_spacing=spacing, curve=curve, prediction_type=prediction_type
    )
    for count in counts_for(name, spacing):
        # DPM-Solver and UniPC round the timesteps of Karras, but cut off those of the other curves. We round.
        cut_off = SAMPLERS[name].grid.whole_timesteps and curve != "karras"
        timesteps = steps_for(schedule, count, grid=SAMPLERS[name].grid).timesteps if cut_off else None
        theirs = their_trajectory(name, schedule, count, start(), monkeypatch, timesteps)
        assert_equal(our_trajectory(name, schedule, count, start()), theirs, count, 2e-5)


# Sigma starts at 4096, where float32 resolves 2.4e-4 of a picture, and diffusers' Euler steps by differences.
# Its DDIM, DDPM and LCM go on to infinity, 2.4e-4 away from 4096, where they cannot take epsilon, and from
# where DDPM's first step keeps none of the noise: from 4096 to a sigma of 40 it keeps a hundredth.
ZERO_SNR_TOLERANCE = {
    "euler": 2e-3, "euler_ancestral": 2e-3, "ddim": 4e-3, "ddpm": 2e-2, "lcm": 4e-3, "tcd": 4e-3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "curve", "prediction_type"),
    [
        (name, curve, prediction_type)
        for name in ORACLES
        if name not in WITHOUT_ZERO_SNR
        for curve in (None, "karras", "exponential")
        for prediction_type in ("epsilon", "v_prediction")
        if not (curve and name in WITHOUT_CURVES)
        and not (prediction_type == "epsilon" and name in ("ddim", "ddpm", "lcm", "tcd"))
    ],
)
def test_every_sampler_from_zero_terminal_snr(name, curve, prediction_type, monkeypatch):
    schedule = NoiseSchedule(
        sampler=name,
        timestep_spacing="trailing",
        curve=curve,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=True,
    )
    for count in STEPS:
        cut_off = SAMPLERS[name].grid.whole_timesteps and curve == "exponential"
        timesteps = steps_for(schedule, count, grid=SAMPLERS[name].grid).timesteps if cut_off else None
        theirs = their_trajectory(name, schedule, count, start(), monkeypatch, timesteps)
        ours = our_trajectory(name, schedule, count, start())
        assert_equal(ours, theirs, count, ZERO_SNR_TOLERANCE.get(name, 2e-5))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ORACLES)
def test_steps_that_do_not_divide_the_training_timesteps(name, spacing):
    schedule = NoiseSchedule(sampler=name, timestep_spacing=spacing)
    scheduler = ORACLES[name].from_config(schedule.to_config())
    for count in (3, 7, 16, 30, 48):  # at 16, trailing rounds halves
        scheduler.set_timesteps(count)
        theirs = [float(timestep) for timestep in scheduler.timesteps]
        if scheduler.order == 2:
            theirs = [theirs[0], *theirs[2::2]]
        ours = steps_for(schedule, count, grid=SAMPLERS[name].grid).timesteps
        assert list(ours) == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta(eta, monkeypatch):
    schedule = NoiseSchedule(sampler="ddim")
    theirs = their_trajectory("ddim", schedule, 20, start(), monkeypatch, eta=eta)
    assert_equal(our_trajectory("ddim", schedule, 20, start(), eta=eta), theirs, 20, 1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_tcd_with_gamma(gamma, count, monkeypatch):
    schedule = NoiseSchedule(sampler="tcd")
    theirs = their_trajectory("tcd", schedule, count, start(), monkeypatch, eta=gamma)
    assert_equal(our_trajectory("tcd", schedule, count, start(), gamma=gamma), theirs, count, 2e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["lcm", "tcd", "euler"])
def test_given_timesteps(name, spacing, monkeypatch):
    """As few-step models of DMD2 need them."""
    timesteps, schedule = [999, 749, 499, 249], NoiseSchedule(sampler=name, timestep_spacing=spacing)
    scheduler = ORACLES[name].from_config(schedule.to_config())
    if name == "lcm":  # refuses timesteps that are not on its own grid
        scheduler = LCMScheduler.from_config(scheduler.config, original_inference_steps=4)
        scheduler.set_timesteps(num_inference_steps=4)
    else:
        scheduler.set_timesteps(timesteps=timesteps)
    assert scheduler.timesteps.tolist() == timesteps
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", draws())
    steps = steps_for(schedule, 4, grid=SAMPLERS[name].grid, timesteps=timesteps)
    more = {"lower": lower_levels(schedule, steps, 0.3)} if name == "tcd" else {}
    denoise = denoiser(model, schedule, steps)
    run = SAMPLERS[name].run(denoise, start() * steps.initial_scale, steps.sigmas, draws(), **more)
    x = start() * scheduler.init_noise_sigma
    for step, timestep in zip(run, scheduler.timesteps, strict=True):
        prediction = model(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(prediction, timestep, x, return_dict=False)[0]
        theirs = x if name != "euler" else x / math.hypot(step.sigma, 1)
        torch.testing.assert_close(step.latents / math.hypot(step.sigma, 1), theirs, atol=1e-4, rtol=0)


# The schedule itself

SCHEDULES = [
    NoiseSchedule(
        beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction"
    )
    for beta_schedule in ("linear", "scaled_linear", "squaredcos_cap_v2")
    for zero_snr in (False, True)
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.beta_schedule}-{s.rescale_betas_zero_snr}")
def test_training_noises_and_aims_as_diffusers_does(schedule):
    oracle = DDPMScheduler.from_config(schedule.to_config())
    latents, noise = torch.randn(2, 6, 4, 4, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    timesteps = torch.tensor([0, 1, 250, 500, 998, 999])
    noisy = oracle.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(schedule.add_noise(latents, noise, timesteps), noisy, atol=5e-5, rtol=0)
    velocity = oracle.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(schedule.target(latents, noise, timesteps), velocity, atol=5e-5, rtol=0)
    torch.testing.assert_close(
        schedule.snr(timesteps), compute_snr(oracle, timesteps).float(), atol=1e-7, rtol=5e-3
    )


@pytest.mark.parametrize("name", ORACLES)
def test_a_written_config_means_the_same_to_diffusers(name):
    schedule = NoiseSchedule(sampler=name, beta_start=0.001, timestep_spacing="trailing", steps_offset=0)
    oracle = ORACLES[name].from_config(schedule.to_config())
    torch.testing.assert_close(oracle.alphas_cumprod.double(), schedule.alphas_cumprod, atol=1e-6, rtol=1e-5)
    assert NoiseSchedule.from_config(dict(oracle.config) | {"_class_name": type(oracle).__name__}) == schedule


def test_rescaled_guidance():
    guided, positive = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    expected = rescale_noise_cfg(3 * guided, positive, 0.7)
    torch.testing.assert_close(rescaled(3 * guided, positive, 0.7), expected)


def test_the_beta_quantile():
    for probability in [0.0, 1e-9, 1e-3, *(i / 97 for i in range(1, 97)), 1 - 1e-3, 1.0]:
        assert beta_quantile(probability) == pytest.approx(float(beta.ppf(probability, 0.6, 0.6)), abs=1e-13)
