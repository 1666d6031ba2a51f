"""The objective: noise as published, captions left out as zeros, weights that do not depend on the kind."""

from pathlib import Path

import pytest
import torch

from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.models.text import TextEncoders
from ssd1b.tabletop.miniature.assemble import _companions
from ssd1b.training.batches import LatentBatch
from ssd1b.training.objective import MAX_WEIGHT, Objective, loss_weights, noised
from ssd1b.weights import hub

TIMES = torch.tensor([0, 1, 100, 400, 700, 999])


@pytest.fixture(scope="module")
def text() -> TextEncoders:
    return _companions(Path(), hub.resolve("mini-sdxl", offline=True).path).text


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_latents_are_noised_and_the_target_undoes_it(text: TextEncoders, prediction: str) -> None:
    schedule = NoiseSchedule(prediction_type=prediction)
    objective = Objective(text=text, device="cpu", dtype=torch.float32, schedule=schedule)
    clean = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    batch = LatentBatch(
        latents=clean.half(),
        text=text.tokenize(["a red cube", "a blue cone", "a torus"]),
        time_ids=torch.tensor([[128, 128, 0, 0, 128, 128]] * 3),
        has_caption=torch.tensor([True, False, True]),
    )
    torch.manual_seed(5)
    example = objective(batch)
    noisy, timesteps, embeds, pooled, time_ids = example.inputs
    alphas = schedule.alphas_cumprod[timesteps.long()].float()[:, None, None, None]
    noise = (noisy - alphas.sqrt() * clean.half().float()) / (1 - alphas).sqrt()
    assert noise.std() == pytest.approx(1, abs=0.1)
    expected = noise if prediction == "epsilon" else alphas.sqrt() * noise - (1 - alphas).sqrt() * clean
    torch.testing.assert_close(example.target, expected, rtol=1e-2, atol=1e-2)
    assert not embeds[1].any() and not pooled[1].any()
    assert embeds[0].any() and pooled[2].any()
    assert time_ids.tolist() == batch.time_ids.tolist()
    torch.manual_seed(5)
    assert objective(batch).inputs[0].equal(noisy)


def test_weights_are_those_of_the_clean_latents_whatever_is_predicted() -> None:
    epsilon, v = (NoiseSchedule(prediction_type=name) for name in ("epsilon", "v_prediction"))
    snr = epsilon.snr(TIMES)
    # An error e in the clean latents is sqrt(snr) e in the noise, and sqrt(snr + 1) e in v.
    torch.testing.assert_close(loss_weights(epsilon, TIMES) * snr, loss_weights(v, TIMES) * (snr + 1))
    in_clean = loss_weights(epsilon, TIMES) * snr
    assert in_clean.max() == pytest.approx(MAX_WEIGHT)
    assert in_clean[-1] == pytest.approx(1, abs=0.01)


def test_each_span_of_time_gives_one_picture_its_noise() -> None:
    torch.manual_seed(2)
    drawn = torch.stack([noised(NoiseSchedule(), torch.zeros(8, 4, 2, 2)).timesteps for _ in range(400)])
    assert (drawn // 125).sort(dim=1).values.equal(torch.arange(8.0).expand(400, 8))
    # Each picture meets all times alike, and within a span they are uniform.
    assert drawn.mean(dim=0).sub(499.5).abs().max() < 60
    assert (drawn % 125).mean() == pytest.approx(62, abs=3)
    alone = torch.cat([noised(NoiseSchedule(), torch.zeros(1, 4, 2, 2)).timesteps for _ in range(400)])
    assert 0 <= alone.min() < 20 and 980 < alone.max() <= 999


def test_pure_noise_has_a_weight_where_v_is_predicted() -> None:
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert loss_weights(schedule, torch.tensor([999])) == pytest.approx(1)


@pytest.mark.parametrize(("prediction", "expected"), [("epsilon", 1e-3**0.5), ("v_prediction", 1 / 1001)])
def test_debiased_weights_are_those_of_sd_scripts(prediction: str, expected: float) -> None:
    schedule = NoiseSchedule(prediction_type=prediction)
    snr = schedule.snr(TIMES)
    found = loss_weights(schedule, TIMES, weighting="debiased")
    assert snr[0] > 1000 and found[0] == pytest.approx(expected), "capped at an SNR of 1000"
    plain = snr[2:].rsqrt() if prediction == "epsilon" else 1 / (snr[2:] + 1)
    torch.testing.assert_close(found[2:], plain)
    assert loss_weights(schedule, TIMES, weighting="constant").equal(torch.ones(6))


def test_a_noise_offset_is_the_same_at_all_places_of_a_channel() -> None:
    clean, found = torch.zeros(2, 4, 8, 8), []
    for offset in (0.0, 0.5):
        torch.manual_seed(2)
        found.append(noised(NoiseSchedule(), clean, offset=offset).target)
    added = found[1] - found[0]
    assert added.std(dim=(2, 3)).max() < 1e-6 and added.mean(dim=(2, 3)).unique().numel() == 8
