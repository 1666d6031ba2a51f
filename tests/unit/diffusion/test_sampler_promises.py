"""Samplers against distributions whose exact denoiser is known, so that a copied bug would show."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from ssd1b.diffusion.denoiser import denoiser
from ssd1b.diffusion.noise import noise_source
from ssd1b.diffusion.samplers import SAMPLERS, dpmpp_2m, euler, lcm, unipc
from ssd1b.diffusion.schedule import NoiseSchedule, steps_for
from ssd1b.diffusion.spacing import CURVES, SPACINGS

MEAN, SPREAD = 0.7, 0.6
CPU = torch.device("cpu")
DETERMINISTIC = ["euler", "ddim", "heun", "dpmpp_2m", "unipc"]
STOCHASTIC = ["euler_ancestral", "ddpm", "dpmpp_2m_sde", "dpmpp_sde", "lcm"]


def gaussian(x, sigma):
    """Expect x0 ~ N(MEAN, SPREAD^2) given x0 + sigma * noise (2206.00364, appendix B.3)."""
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def flow(x, sigma, sigma_next):
    """Solve the probability flow of that Gaussian exactly."""
    return MEAN + (x - MEAN) * math.hypot(SPREAD, sigma_next) / math.hypot(SPREAD, sigma)


def no_noise():
    raise AssertionError("a deterministic sampler drew noise")


def last(steps):
    *_, final = steps
    return final


def order_of(run, tail=0, counts=(20, 28, 40, 56, 80)):
    """Fit the order of convergence: the slope of log error over log steps, from sigma 20 down to 0.05.

    ``tail`` adds steps of no length, for UniPC lowers its order in the last steps and corrects after a step.
    """
    x = torch.linspace(-40, 40, 64, dtype=torch.float64).view(1, 4, 4, 4)
    errors = []
    for count in counts:
        sigmas = [*np.geomspace(20, 0.05, count + 1), *(0.05 * (1 - i * 1e-7) for i in range(1, tail + 1))]
        end = last(run(gaussian, x, [float(sigma) for sigma in sigmas], no_noise)).latents
        errors.append((end - flow(x, 20, 0.05)).abs().max().item())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_the_order_of_convergence_is_the_published_one(name, order):
    assert order_of(SAMPLERS[name].run) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_one_order_better_than_its_predictor(order):
    """2302.04867, theorem 3.1: UniPC-p converges with order p + 1."""
    measured = order_of(partial(unipc, order=order), tail=order, counts=(40, 56, 80, 112, 160))
    assert measured == pytest.approx(order + 1, abs=0.45)


def spread_errors(name, count):
    """Relative error of the standard deviation after each step, on half a million pixels."""
    schedule = NoiseSchedule(timestep_spacing="trailing")
    steps = steps_for(schedule, count, grid=SAMPLERS[name].grid, schedule="karras")
    noise = noise_source([1, 2, 3, 4], 128, 128, CPU)
    start = MEAN + math.hypot(SPREAD, steps.sigmas[0]) * noise()
    errors = []
    for step in SAMPLERS[name].run(gaussian, start, steps.sigmas, noise):
        expected = math.hypot(SPREAD, step.sigma)
        assert step.latents.mean().item() == pytest.approx(MEAN, abs=0.02 * expected)
        errors.append(abs(step.latents.std().item() / expected - 1))
    return errors


@pytest.mark.parametrize("name", ["euler_ancestral", "ddpm", "dpmpp_2m_sde", "dpmpp_sde"])
def test_stochastic_samplers_converge_to_the_variance_of_every_level(name):
    coarse, fine = spread_errors(name, 30), spread_errors(name, 90)
    assert max(coarse) < 0.15
    assert max(fine) < 0.055
    assert fine[-1] < 0.5 * coarse[-1]


def test_a_consistency_model_keeps_the_variance_in_four_steps():
    steps = steps_for(NoiseSchedule(), 4, grid=SAMPLERS["lcm"].grid)
    noise = noise_source([1, 2, 3, 4], 64, 64, CPU)
    start = MEAN + math.hypot(SPREAD, steps.sigmas[0]) * noise()
    for step in lcm(lambda x, sigma: flow(x, sigma, 0.0), start, steps.sigmas, noise):
        assert step.latents.mean().item() == pytest.approx(MEAN, abs=0.02 * math.hypot(1, step.sigma))
        assert step.latents.std().item() == pytest.approx(math.hypot(SPREAD, step.sigma), rel=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_says_how_often_it_evaluates_the_model(name):
    steps, asked = steps_for(NoiseSchedule(), 5, grid=SAMPLERS[name].grid), []

    def denoise(x, sigma):
        asked.append(sigma)
        return gaussian(x, sigma)

    noise = noise_source([1], 8, 8, CPU)
    last(SAMPLERS[name].run(denoise, noise(), steps.sigmas, noise))
    assert len(asked) == SAMPLERS[name].evaluations * 4 + 1


def test_ddim_at_eta_one_is_the_posterior_of_the_diffusion():
    """2006.11239, equation 7, in variance exploding space: the next state, given the present one and x0."""
    sigma, sigma_next, x0 = 3.0, 1.2, 0.4
    x, noise = torch.full((1, 4, 128, 128), 2.5), noise_source([5], 128, 128, CPU)
    step = last(euler(lambda x, sigma: torch.full_like(x, x0), x, [sigma, sigma_next], noise, eta=1.0))
    share = sigma_next**2 / sigma**2
    assert step.latents.mean().item() == pytest.approx(x0 + share * (2.5 - x0), abs=0.02)
    assert step.latents.var().item() == pytest.approx(sigma_next**2 * (1 - share), rel=0.02)


def test_both_stages_of_dpmpp_sde_share_one_brownian_path():
    """W(a) and W(b) of one path have correlation sqrt(a / b)."""
    sigma, sigma_next = 4.0, 1.0
    seen = []

    def predict_zero(x, level):
        seen.append(x)
        return torch.zeros_like(x)

    noise = noise_source([1, 2], 128, 128, CPU)
    end = last(
        SAMPLERS["dpmpp_sde"].run(predict_zero, torch.zeros(2, 4, 128, 128), [sigma, sigma_next], noise)
    )
    halfway, whole = seen[1], end.latents
    correlation = torch.corrcoef(torch.stack([halfway.flatten(), whole.flatten()]))[0, 1].item()
    assert correlation == pytest.approx(math.sqrt((sigma - 2.0) / (sigma - sigma_next)), abs=0.01)
    assert whole.var().item() == pytest.approx(sigma_next**2 * (1 - sigma_next**2 / sigma**2), rel=0.02)


def test_eta_moves_between_the_deterministic_and_the_stochastic_sampler():
    x, draw = torch.randn(1, 4, 8, 8), noise_source([1], 8, 8, CPU)()
    sigmas = [5.0, 2.0, 0.5, 0.0]
    for run in (euler, dpmpp_2m):
        ends = [last(run(gaussian, x, sigmas, lambda: draw, eta=eta)).latents for eta in (0.0, 0.3, 1.0)]
        assert (ends[1] - ends[0]).abs().max() < (ends[2] - ends[0]).abs().max()


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_models_first_guess(name):
    steps = steps_for(NoiseSchedule(), 1, grid=SAMPLERS[name].grid, schedule="trailing")
    x = torch.randn(1, 4, 8, 8) * steps.initial_scale
    (step,) = SAMPLERS[name].run(gaussian, x, steps.sigmas, no_noise)
    torch.testing.assert_close(step.latents, gaussian(x, steps.sigmas[0]))
    assert (step.index, step.sigma) == (0, 0.0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("prediction_type", "zero_snr"), [("epsilon", False), ("v_prediction", True)])
def test_nothing_is_ever_nan(name, prediction_type, zero_snr):
    noise_schedule = NoiseSchedule(prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr)
    for schedule in (None, *SPACINGS, *CURVES):
        for count in (1, 2, 3, 50):
            steps = steps_for(noise_schedule, count, grid=SAMPLERS[name].grid, schedule=schedule)
            denoise = denoiser(lambda x, timestep: x.tanh(), noise_schedule, steps)
            noise = noise_source([0], 2, 2, CPU)
            states = list(SAMPLERS[name].run(denoise, noise() * steps.initial_scale, steps.sigmas, noise))
            assert len(states) == count
            for step in states:
                assert step.latents.isfinite().all()
                assert step.denoised.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_report_where_they_are_and_end_in_the_last_guess(name):
    sigmas = (8.0, 3.0, 1.0, 0.2, 0.0)
    noise = noise_source([0], 4, 4, CPU)
    states = list(SAMPLERS[name].run(gaussian, noise() * 8, sigmas, noise))
    assert [step.index for step in states] == [0, 1, 2, 3]
    assert tuple(step.sigma for step in states) == sigmas[1:]
    torch.testing.assert_close(states[-1].latents, states[-1].denoised)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_model_runs_only_while_the_caller_iterates(name):
    calls = []

    def counted(x, sigma):
        calls.append(sigma)
        return gaussian(x, sigma)

    noise = noise_source([0], 4, 4, CPU)
    steps = SAMPLERS[name].run(counted, noise() * 8, (8.0, 3.0, 1.0, 0.2, 0.0), noise)
    assert calls == []
    next(steps)
    evaluations = len(calls)
    assert evaluations == SAMPLERS[name].evaluations
    next(steps)
    steps.close()
    assert len(calls) == 2 * evaluations


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_draw_no_noise(name):
    last(SAMPLERS[name].run(gaussian, torch.randn(1, 4, 4, 4), (8.0, 3.0, 1.0, 0.0), no_noise))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_draw_fresh_noise(name):
    ends = []
    for seed in (1, 2):
        noise = noise_source([seed], 4, 4, CPU)
        ends.append(
            last(SAMPLERS[name].run(gaussian, torch.ones(1, 4, 4, 4), (8.0, 3.0, 1.0, 0.0), noise)).latents
        )
    assert not torch.allclose(*ends)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seeds_picture_does_not_depend_on_its_batch(name):
    sigmas = (8.0, 3.0, 1.0, 0.2, 0.0)

    def picture(seeds, index):
        noise = noise_source(seeds, 4, 4, CPU)
        return last(SAMPLERS[name].run(gaussian, noise() * 8, sigmas, noise)).latents[index]

    torch.testing.assert_close(picture([7], 0), picture([3, 7, 11], 1), rtol=0, atol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_start_is_left_as_it_was(name):
    noise = noise_source([0], 4, 4, CPU)
    start = noise() * 8
    before = start.clone()
    last(SAMPLERS[name].run(gaussian, start, (8.0, 3.0, 1.0, 0.0), noise))
    assert torch.equal(start, before)
