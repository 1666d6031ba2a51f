import torch

from ssd1b.diffusion.noise import noise_source
from ssd1b.settings import SEEDS

CPU = torch.device("cpu")


def test_a_seed_draws_the_same_noise_in_every_batch():
    alone, batch = noise_source([7], 8, 6, CPU), noise_source([3, 7, 9], 8, 6, CPU)
    for _ in range(3):
        assert torch.equal(alone()[0], batch()[1])


def test_every_draw_is_fresh_and_repeatable():
    first, second = noise_source([7], 8, 8, CPU), noise_source([7], 8, 8, CPU)
    draws = [first() for _ in range(3)]
    assert all(torch.equal(draw, second()) for draw in draws)
    assert not torch.equal(draws[0], draws[1])


def test_the_numbers_are_those_of_a_plain_generator():
    expected = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(SEEDS - 1))
    assert torch.equal(noise_source([SEEDS - 1], 8, 8, CPU)(), expected)


def test_a_generator_takes_the_lowest_32_bits_of_a_seed():
    """So larger seeds are not offered; if this changes with a version of torch, they can be."""
    small, large = noise_source([7], 8, 8, CPU)(), noise_source([SEEDS + 7], 8, 8, CPU)()
    assert torch.equal(small, large)
    assert not torch.equal(small, noise_source([SEEDS - 7], 8, 8, CPU)())


def test_noise_is_standard_normal_and_independent_between_pictures():
    noise = noise_source(list(range(8)), 64, 64, CPU)().flatten(1)
    assert noise.mean(1).abs().max() < 0.05
    assert (noise.std(1) - 1).abs().max() < 0.05
    assert (torch.corrcoef(noise) - torch.eye(8)).abs().max() < 0.05
