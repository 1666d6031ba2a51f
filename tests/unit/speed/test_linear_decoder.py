"""The cheap preview decoder: a linear map fitted to one decoded step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssd1b.pipeline import Pipeline
from ssd1b.speed.linear_decoder import LinearDecoder


def test_a_linear_decoder_is_recovered():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 3 * 8 * 8, 3, padding=1, padding_mode="replicate").requires_grad_(False)
    first, second = torch.randn(2, 1, 4, 32, 24)
    found = LinearDecoder(first, F.pixel_shuffle(conv(first), 8))
    expected = F.pixel_shuffle(conv(second), 8)
    assert (found(second) - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("latents", [torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 1, 1)])
def test_few_or_identical_cells_are_harmless(latents):
    height, width = latents.shape[-2:]
    pixels = torch.full((1, 3, height * 8, width * 8), 0.25)
    decoder = LinearDecoder(latents, pixels)
    assert torch.equal(decoder(latents), pixels)
    assert torch.allclose(decoder(latents + 0.1), pixels, atol=0.01)


def test_a_preview_is_closer_than_the_previous_step():
    """Fitted to one early step, it decodes the next one better than showing the previous image would."""
    pipeline = Pipeline.load("mini-ssd-1b", device="cpu", dtype="fp32")
    settings = pipeline.settings("a small yellow rubber cube on a green background", seed=0, steps=20)
    with torch.inference_mode():
        steps = pipeline.steps([settings])
        guesses = [next(steps).denoised for _ in range(4)]
        before, now = (pipeline.vae.decode(guesses[place]) for place in (2, 3))
        shown = LinearDecoder(guesses[2], before)(guesses[3])
    assert (shown - now).norm() < 0.8 * (before - now).norm()
