import math

import pytest
import torch

from ssd1b.diffusion.denoiser import Guidance, denoiser, guided, rescaled
from ssd1b.diffusion.samplers import SAMPLERS
from ssd1b.diffusion.schedule import NoiseSchedule, steps_for


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("rescale_betas_zero_snr", [False, True])
def test_a_perfect_prediction_gives_the_picture_back(prediction_type, rescale_betas_zero_snr):
    schedule = NoiseSchedule(
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
        timestep_spacing="trailing",
    )
    steps = steps_for(schedule, 7)
    picture, noise = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind(0)

    def oracle(x, timestep):
        timesteps = torch.full((3,), round(timestep))
        if rescale_betas_zero_snr and timestep == 999:  # sampling's largest sigma is 4096
            return noise if prediction_type == "epsilon" else (noise - 4096 * picture) / math.hypot(4096, 1)
        expected = schedule.add_noise(picture, noise, timesteps)
        torch.testing.assert_close(x, expected)
        return schedule.target(picture, noise, timesteps)

    denoise = denoiser(oracle, schedule, steps)
    for sigma in steps.sigmas[:-1]:
        tolerance = 1e-9 if sigma < 100 else 1e-3
        denoised = denoise(picture + sigma * noise, sigma)
        torch.testing.assert_close(denoised, picture, atol=tolerance, rtol=tolerance)


def test_sigmas_of_the_run_keep_their_timesteps_and_others_are_interpolated():
    schedule = NoiseSchedule(curve="karras")
    steps = steps_for(schedule, 6, grid=SAMPLERS["dpmpp_2m"].grid)  # rounds its timesteps
    seen = []

    def spy(x, timestep):
        seen.append(timestep)
        return torch.zeros_like(x)

    denoise = denoiser(spy, schedule, steps)
    x = torch.zeros(1, 4, 2, 2)
    for sigma in steps.sigmas[:-1]:
        denoise(x, sigma)
    assert seen == list(steps.timesteps)

    seen.clear()
    table = schedule.sigmas
    denoise(x, math.sqrt(table[500] * table[501]))
    denoise(x, 1e-3)
    denoise(x, 1e3)
    assert seen == pytest.approx([500.5, 0.0, 999.0])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_only_the_model_runs_in_bfloat16(prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    steps = steps_for(schedule, 3)
    x = torch.randn(1, 4, 8, 8)

    def half(x, timestep):
        return x.to(torch.bfloat16)

    def halves(x, timestep):
        return half(x, timestep), half(x.tanh(), timestep)

    def upcast(x, timestep):
        return half(x, timestep).float()

    def upcasts(x, timestep):
        negative, positive = halves(x, timestep)
        return negative.float(), positive.float()

    guidance = Guidance(scale=7.0)
    low = half, guided(half, halves, guidance, 1000)
    exact = upcast, guided(upcast, upcasts, guidance, 1000)
    for model, reference in zip(low, exact, strict=True):
        denoised = denoiser(model, schedule, steps)(x, steps.sigmas[0])
        assert denoised.dtype == torch.float32
        assert torch.equal(denoised, denoiser(reference, schedule, steps)(x, steps.sigmas[0]))


def counted():
    calls = {"one": 0, "pair": 0}

    def predict(x, timestep):
        calls["one"] += 1
        return x + 1.0

    def predict_pair(x, timestep):
        calls["pair"] += 1
        return x - 1.0, x + 1.0

    return calls, predict, predict_pair


def test_guidance_pulls_away_from_the_negative_prompt_in_one_forward():
    calls, predict, predict_pair = counted()
    model = guided(predict, predict_pair, Guidance(scale=5.0), 1000)
    assert torch.equal(model(torch.zeros(2, 4, 2, 2), 500.0), torch.full((2, 4, 2, 2), 9.0))
    assert calls == {"one": 0, "pair": 1}


def test_a_scale_of_one_never_runs_the_negative_prompt():
    calls, predict, predict_pair = counted()
    model = guided(predict, predict_pair, Guidance(scale=1.0), 1000)
    assert torch.equal(model(torch.zeros(2, 4, 2, 2), 500.0), torch.ones(2, 4, 2, 2))
    assert calls == {"one": 1, "pair": 0}


@pytest.mark.parametrize(
    ("start", "end", "pairs"),
    [(0.0, 1.0, 10), (0.0, 0.0, 0), (0.5, 1.0, 5), (0.0, 0.3, 3), (0.2, 0.8, 6), (0.9, 1.0, 1)],
)
def test_no_negative_pass_outside_the_guidance_interval(start, end, pairs):
    calls, predict, predict_pair = counted()
    schedule = NoiseSchedule()
    steps = steps_for(schedule, 10, schedule="trailing")
    model = guided(predict, predict_pair, Guidance(scale=3.0, start=start, end=end), 1000)
    denoise = denoiser(model, schedule, steps)
    for sigma in steps.sigmas[:-1]:
        denoise(torch.zeros(1, 4, 2, 2), sigma)
    assert calls == {"one": 10 - pairs, "pair": pairs}


def test_the_whole_interval_holds_every_timestep():
    calls, predict, predict_pair = counted()
    model = guided(predict, predict_pair, Guidance(scale=3.0), 1000)
    for timestep in (999.0, 0.0):
        model(torch.zeros(1, 4, 2, 2), timestep)
    assert calls == {"one": 0, "pair": 2}


def test_rescaled_guidance_has_the_standard_deviation_of_the_prompts_prediction():
    positive, guidance = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind(0)
    guidance = guidance * torch.tensor([2.0, 5.0, 9.0], dtype=torch.float64).view(3, 1, 1, 1)
    axes = (1, 2, 3)
    torch.testing.assert_close(rescaled(guidance, positive, 1.0).std(axes), positive.std(axes))
    torch.testing.assert_close(rescaled(guidance, positive, 0.0), guidance)
    half = (rescaled(guidance, positive, 1.0) + guidance) / 2
    torch.testing.assert_close(rescaled(guidance, positive, 0.5), half)
