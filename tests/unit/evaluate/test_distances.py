"""Distances between sets of features: known values, zero where there is no difference, more for more."""

import numpy as np
import pytest

from ssd1b.evaluate.distances import covered, diversity, frechet_distance, kernel_distance

RNG = np.random.default_rng(0)
SAMPLE = RNG.normal(size=(4000, 6))


def test_frechet_distance_of_two_gaussians_is_the_formula() -> None:
    shifted = RNG.normal(size=(40000, 6)) * 2 + 1
    # |1|^2 over six axes, and for each axis 1 + 4 - 2 * 2.
    assert frechet_distance(RNG.normal(size=(40000, 6)), shifted) == pytest.approx(12, rel=0.03)


def test_a_set_is_at_no_distance_from_itself() -> None:
    assert frechet_distance(SAMPLE, SAMPLE) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(SAMPLE[:2000], SAMPLE[2000:]) == pytest.approx(0, abs=0.02)


def test_frechet_distance_agrees_with_scipys_square_root() -> None:
    from scipy.linalg import sqrtm

    other = SAMPLE @ RNG.normal(size=(6, 6))
    covariances = np.cov(SAMPLE, rowvar=False), np.cov(other, rowvar=False)
    gap = SAMPLE.mean(0) - other.mean(0)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(SAMPLE, other) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_further_away_is_more(distance) -> None:
    far = [distance(SAMPLE[:1000], SAMPLE[1000:2000] + shift) for shift in (0.0, 0.3, 1.0)]
    assert far == sorted(far) and far[0] < 0.2 < far[2]


def test_the_kernel_distance_is_unbiased_for_small_sets() -> None:
    """Fréchet distances of two halves of one set grow as the sets shrink; kernel distances do not."""
    halves = [RNG.normal(size=(2, 20, 6)) for _ in range(300)]
    kernel = [kernel_distance(*pair) for pair in halves]
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(300)
    assert np.mean([frechet_distance(*pair) for pair in halves]) > 1


def test_diversity_is_the_mean_distance_between_seeds() -> None:
    features = np.array([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert diversity(features).tolist() == [5.0, 0.0]
    assert np.isnan(diversity(features[:, :1])).all()


def test_points_are_covered_within_the_distance_of_neighbours() -> None:
    """On a line with points at 0, 1, 2, 3 the third neighbours are 3, 2, 2 and 3 away."""
    line = np.arange(4.0)[:, None]
    assert covered(np.array([[-3.0], [-3.1], [1.5], [6.0], [6.1]]), line).tolist() == [1, 0, 1, 1, 0]
    assert covered(np.array([[-1.0], [-1.1], [4.0]]), line, neighbours=1).tolist() == [True, False, True]


def test_a_set_without_a_mode_has_precision_but_no_recall_of_it() -> None:
    first, second = RNG.normal(size=(200, 3)), RNG.normal(size=(200, 3)) + 50
    real, made = np.concatenate([first, second]), RNG.normal(size=(400, 3))
    assert covered(made, real).mean() > 0.9
    assert covered(real, made)[:200].mean() > 0.9 and not covered(real, made)[200:].any()
