"""Previews: a sketch belongs to the size of its image, which the hires fix changes."""

import pytest
import torch
from PIL import Image

from ssd1b.diffusion.samplers import Step
from ssd1b.jobs import previews as module
from ssd1b.pipeline import Pipeline


class Decoder(Pipeline):
    """A pipeline that only decodes previews."""

    def __init__(self) -> None: ...

    def preview(self, latents: torch.Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (latents.shape[-1] * 8, latents.shape[-2] * 8))]


def test_no_step_is_sketched_by_one_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first step takes a second, so the next one is decoded after nine more.
    clock = iter([0.0, 1.0, 1.1, 1.2, 5.0, 20.0, 21.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    shown: list[tuple[int, int]] = []
    watch = module.previews(Decoder(), lambda image: shown.append(image.size))
    for index, side in enumerate((2, 2, 3, 3)):
        latents = torch.randn(1, 4, side, side)
        watch(Step(index=index, sigma=1.0, latents=latents, denoised=latents))
    assert shown == [(16, 16), (16, 16), (24, 24)]
