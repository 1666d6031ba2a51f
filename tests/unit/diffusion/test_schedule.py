import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd1b import sampler_names
from ssd1b.diffusion.samplers import SAMPLERS
from ssd1b.diffusion.schedule import BETA_SCHEDULES, NoiseSchedule, StepSchedule, steps_for, timestep_of
from ssd1b.diffusion.spacing import CURVES, SPACINGS
from ssd1b.errors import InputError

SDXL_CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def test_the_defaults_are_sdxl():
    assert NoiseSchedule.from_config(SDXL_CONFIG) == NoiseSchedule()
    sigmas = NoiseSchedule().sigmas
    assert sigmas[0].item() == pytest.approx(0.0292, abs=5e-5)  # the ends that k-diffusion and ComfyUI print
    assert sigmas[-1].item() == pytest.approx(14.6146, abs=5e-5)
    assert steps_for(NoiseSchedule(), 4).timesteps == (751.0, 501.0, 251.0, 1.0)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_noise_only_grows_with_time(beta_schedule):
    schedule = NoiseSchedule(beta_schedule=beta_schedule)
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert schedule.alphas_cumprod[0] > 0.99
    assert (schedule.alphas_cumprod.diff() < 0).all()
    assert (schedule.sigmas.diff() > 0).all()


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step():
    plain, rescaled = (
        NoiseSchedule(),
        NoiseSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    )
    assert rescaled.alphas_cumprod[-1] == 0
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert rescaled.sigmas[-1].item() == pytest.approx(4096, rel=1e-6)

    latents, noise = torch.randn(2, 1, 4, 2, 2).unbind(0)
    last = torch.tensor([999])
    torch.testing.assert_close(rescaled.add_noise(latents, noise, last), noise)
    torch.testing.assert_close(rescaled.target(latents, noise, last), -latents)
    assert rescaled.snr(last) == 0


def test_training_noise_has_the_variance_and_the_ratio_it_says():
    schedule = NoiseSchedule()
    timesteps = torch.tensor([0, 300, 999])
    latents, noise = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind(0)
    zero = torch.zeros_like(noise)
    signal, scale = schedule.add_noise(latents, zero, timesteps), schedule.add_noise(zero, noise, timesteps)
    squares = (signal / latents) ** 2 + (scale / noise) ** 2
    torch.testing.assert_close(squares, torch.ones_like(squares))
    ratio = ((signal / latents) / (scale / noise)) ** 2
    torch.testing.assert_close(ratio[:, 0, 0, 0].float(), schedule.snr(timesteps))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_training_in_bfloat16_still_uses_exact_noise_levels(prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    latents, noise = torch.randn(2, 2, 4, 2, 2).to(torch.bfloat16).unbind(0)
    timesteps = torch.tensor([10, 700])
    for method in (schedule.add_noise, schedule.target):
        low, exact = method(latents, noise, timesteps), method(latents.float(), noise.float(), timesteps)
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, exact.to(torch.bfloat16))


# Configs


@pytest.mark.parametrize("sampler", sampler_names.SAMPLERS)
@pytest.mark.parametrize("curve", [None, *CURVES])
def test_a_written_config_reads_back_equal(sampler, curve):
    schedule = NoiseSchedule(
        num_train_timesteps=500,
        beta_schedule="linear",
        beta_start=0.001,
        beta_end=0.02,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=0,
        curve=curve,
        sampler=sampler,
    )
    assert NoiseSchedule.from_config(schedule.to_config()) == schedule


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"timestep_spacing": "sideways"}, "timestep_spacing"),
        ({"timestep_type": "continuous"}, "timestep_type"),
        ({"sigma_max": 80.0}, "sigma_max"),
        ({"clip_sample": True}, "clip_sample"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"variance_type": "learned_range"}, "variance_type"),
        ({"sigma_data": 0.5}, "sigma_data"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps"),
        ({"beta_start": float("nan")}, "beta_start"),
        ({"beta_end": None}, "beta_end"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
    ],
)
def test_a_setting_that_is_not_understood_is_named(change, named):
    with pytest.raises(InputError, match=named):
        NoiseSchedule.from_config(SDXL_CONFIG | change)


@pytest.mark.parametrize("key", ["num_train_timesteps", "beta_schedule", "beta_start", "beta_end"])
def test_what_the_model_was_trained_on_is_never_guessed(key):
    config = {name: value for name, value in SDXL_CONFIG.items() if name != key}
    with pytest.raises(InputError, match=key):
        NoiseSchedule.from_config(config)


@pytest.mark.parametrize(
    ("change", "sampler", "curve"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"}, "dpmpp_2m", None),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "dpmpp_2m_sde",
            None,
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "dpmpp_2m", "karras"),
        ({"_class_name": "LCMScheduler", "timestep_scaling": 10.0}, "lcm", None),
        ({"_class_name": "PNDMScheduler"}, "dpmpp_2m", None),
        ({"final_sigmas_type": "sigma_min"}, "euler", None),
    ],
)
def test_the_makers_sampler_becomes_the_default(change, sampler, curve):
    schedule = NoiseSchedule.from_config(SDXL_CONFIG | change)
    assert (schedule.sampler, schedule.curve) == (sampler, curve)


def test_files_from_before_timestep_spacing_mean_what_their_class_did():
    old = {
        key: value for key, value in SDXL_CONFIG.items() if key not in ("timestep_spacing", "steps_offset")
    }
    assert NoiseSchedule.from_config(old).timestep_spacing == "linspace"
    assert NoiseSchedule.from_config(old | {"_class_name": "DDIMScheduler"}).timestep_spacing == "leading"
    assert NoiseSchedule.from_config(old).steps_offset == 0


# Steps


def test_the_table_of_names_and_the_tables_of_code_agree():
    assert list(SAMPLERS) == list(sampler_names.SAMPLERS)
    assert {*SPACINGS, *CURVES} == set(sampler_names.SCHEDULES)


GRIDS = {name: sampler.grid for name, sampler in SAMPLERS.items()}


def check(steps: StepSchedule, count: int) -> None:
    assert len(steps.sigmas) == count + 1
    assert len(steps.timesteps) == count
    assert steps.sigmas[-1] == 0.0
    assert all(later < sooner for sooner, later in zip(steps.sigmas, steps.sigmas[1:], strict=False))
    assert all(0 <= timestep <= 999 for timestep in steps.timesteps)
    assert all(later <= sooner for sooner, later in zip(steps.timesteps, steps.timesteps[1:], strict=False))
    assert steps.initial_scale in (steps.sigmas[0], math.hypot(steps.sigmas[0], 1))


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(-2, 120) | st.sampled_from([498, 499, 500, 999, 1000, 1001]),
    name=st.sampled_from(list(SAMPLERS)),
    schedule=st.sampled_from([None, *SPACINGS, *CURVES]),
    zero_snr=st.booleans(),
)
def test_any_request_gives_falling_steps_that_end_in_a_picture_or_a_clear_error(
    count, name, schedule, zero_snr
):
    noise_schedule = NoiseSchedule(rescale_betas_zero_snr=zero_snr)
    try:
        steps = steps_for(noise_schedule, count, grid=GRIDS[name], schedule=schedule)
    except InputError:
        limit = 50 if {"lcm", "tcd"} & {name, schedule} else 499  # both take LCM's steps by default
        assert count < 1 or count > limit
    else:
        check(steps, count)


@pytest.mark.parametrize("schedule", SPACINGS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_spacings_timesteps_and_sigmas_belong_together(grid, schedule):
    noise_schedule = NoiseSchedule()
    steps = steps_for(noise_schedule, 13, grid=grid, schedule=schedule)
    table = noise_schedule.sigmas
    for sigma, timestep in zip(steps.sigmas, steps.timesteps, strict=False):
        low, high = table[math.floor(timestep)].item(), table[math.ceil(timestep)].item()
        assert low <= sigma <= high
        if timestep == round(timestep):
            assert sigma == low
            assert timestep_of(sigma, table.tolist()) == pytest.approx(timestep, abs=1e-9)


@pytest.mark.parametrize("curve", CURVES)
def test_curves_run_over_the_models_whole_range_for_multistep_solvers(curve):
    steps = steps_for(NoiseSchedule(), 9, grid=SAMPLERS["dpmpp_2m"].grid, schedule=curve)
    assert (steps.timesteps[0], steps.timesteps[-1]) == (999.0, 0.0)
    euler = steps_for(NoiseSchedule(), 9, grid=SAMPLERS["euler"].grid, schedule=curve)
    leading = steps_for(NoiseSchedule(), 9, grid=SAMPLERS["euler"].grid)
    assert (euler.sigmas[0], euler.sigmas[-2]) == pytest.approx((leading.sigmas[0], leading.sigmas[-2]))


def test_one_step_starts_from_noise():
    for schedule in ("trailing", "linspace", "normal", "sgm_uniform", "simple", "lcm"):
        assert steps_for(NoiseSchedule(), 1, schedule=schedule).timesteps == (999.0,)


def test_trailing_has_the_steps_asked_for_where_floating_point_is_unkind():
    steps = steps_for(NoiseSchedule(), 61, schedule="trailing")
    check(steps, 61)


def test_the_models_own_schedule_is_used_unless_sampler_or_user_say_otherwise():
    schedule = NoiseSchedule(timestep_spacing="trailing")
    assert steps_for(schedule, 5) == steps_for(schedule, 5, schedule="trailing")
    assert steps_for(NoiseSchedule(curve="karras"), 5) == steps_for(NoiseSchedule(), 5, schedule="karras")
    lcm = SAMPLERS["lcm"].grid
    assert steps_for(schedule, 4, grid=lcm).timesteps == (999.0, 759.0, 499.0, 259.0)
    assert steps_for(schedule, 4, grid=lcm, schedule="trailing").timesteps == (999.0, 749.0, 499.0, 249.0)


@pytest.mark.parametrize(
    ("count", "schedule", "message"),
    [
        (0, None, "steps"),
        (1001, None, "steps"),
        (51, "lcm", "steps"),
        (5, "karas", "karras"),
        (1000, "leading", "leading"),
    ],
)
def test_impossible_steps_are_refused(count, schedule, message):
    with pytest.raises(InputError, match=message):
        steps_for(NoiseSchedule(), count, schedule=schedule)
