"""Memoized networks answer the same, to the bit, and forget the least recently used outputs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ssd1b.jobs.memoization import memoize
from ssd1b.pipeline import Pipeline


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, number: float | None = None) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return x + (number or 0), x * 2


def test_only_what_is_new_is_computed() -> None:
    network, other = Counting(), Counting()
    x = torch.randn(2, 3)
    with memoize([network, other]):
        first = network(x, 1.0)
        assert network(x.clone(), 1.0) is first and network.calls == 1
        for changed in (x + 1e-7, x.double(), x.reshape(3, 2), x.bfloat16()):
            network(changed, 1.0)
        network(x, None)
        network(x, 2.0)
        assert network.calls == 7
        assert other(x, 1.0) is not first and other.calls == 1
    network(x, 1.0)
    assert network.calls == 8, "outside of the context nothing is memoized"
    assert "forward" not in vars(network)


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    network = Counting()
    numbers = [torch.full((64,), float(number)) for number in range(4)]  # 512 bytes of answers each
    with memoize([network], limit=3 * 512):
        for number in (0, 1, 2, 0, 3):
            network(numbers[number])
        assert network.calls == 4
        network(numbers[0])
        network(numbers[2])
        assert network.calls == 4
        network(numbers[1])
        assert network.calls == 5


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.load("mini-sdxl", device="cpu", dtype="fp32")


def test_pictures_are_the_same_and_share_what_they_can(mini: Pipeline) -> None:
    first = mini.settings("a red cube", seed=3, steps=4, guidance_scale=3.0)
    cells = [
        first,
        replace(first, guidance_scale=5.0),  # the same first step
        replace(first, guidance_interval=(0.0, 0.5)),  # the same first half
        replace(first, guidance_interval=(0.0, 0.8)),
        replace(first, feature_reuse=0.5),  # nothing: what it reuses is no answer to what it was asked alone
        replace(first, prompt="a blue cone"),
        first,
    ]

    def latents() -> list[Tensor]:
        return [list(mini.steps([cell]))[-1].latents for cell in cells]

    alone = latents()
    calls = []
    forward = mini.unet.forward
    mini.unet.forward = lambda *given: (calls.append(1), forward(*given))[1]
    try:
        with memoize([mini.unet, mini.text.encoder, mini.text.encoder_2]) as cache:
            together = latents()
    finally:
        del mini.unet.forward
    assert all(one.equal(other) for one, other in zip(alone, together, strict=True))
    assert len(calls) <= 4 + 3 + 2 + 1 + 4 + 4 + 0
    assert cache.hits > 0
