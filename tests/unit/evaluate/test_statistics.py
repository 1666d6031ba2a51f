"""Intervals cover what they say, and a paired difference sees what an unpaired one cannot."""

import numpy as np
import pytest

from ssd1b.evaluate.statistics import by_prompt, difference, differences, estimate, estimates

KNOWN = {
    "normal": (lambda rng, shape: rng.normal(1, 2, shape), 1.0),
    "right or wrong": (lambda rng, shape: (rng.random(shape) < 0.8) * 1.0, 0.8),
    "difference of pairs": (lambda rng, shape: rng.choice([-1.0, 0, 1], shape, p=[0.1, 0.6, 0.3]), 0.2),
    "mean of four": (lambda rng, shape: rng.binomial(4, 0.7, shape) / 4, 0.7),
}


@pytest.mark.parametrize("size", [30, 60, 200])
@pytest.mark.parametrize("kind", KNOWN)
def test_the_interval_covers_the_true_mean_nineteen_times_in_twenty(kind: str, size: int) -> None:
    draw, truth = KNOWN[kind]
    found = estimates(draw(np.random.default_rng(size), (2000, size)))
    assert 0.93 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.97


def test_few_values_have_intervals_as_wide_as_student_s() -> None:
    found = estimates(np.random.default_rng(0).normal(0, 1, (2000, 8)))
    assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.93


def test_rows_are_estimated_as_each_by_itself() -> None:
    rows = np.random.default_rng(3).random((5, 20))
    rows[1, :4] = rows[3, 7] = np.nan
    rows[4] = np.nan
    for row, each in zip(rows[:4], estimates(rows)[:4], strict=True):
        assert each == pytest.approx(estimate(row))
    assert estimates(rows)[4].size == 0


def test_what_was_not_asked_for_does_not_count() -> None:
    assert estimate([1.0, np.nan, 0.0]).mean == 0.5
    assert estimate([1.0, np.nan, 0.0]).size == 2


def test_nothing_known_and_no_spread_are_no_errors() -> None:
    assert estimate([]).size == 0 and np.isnan(estimate([np.nan]).mean)
    assert estimate([1.0, 1.0]) == (1.0, 1.0, 1.0, 2)


def test_pairs_tell_apart_what_differs_little_between_values_that_differ_much() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(0, 10, 100)
    second = first + rng.normal(0.5, 0.5, 100)
    told = difference(first, second)
    assert 0 < told.low < 0.5 < told.high < 0.7
    assert estimate(first).high - estimate(first).low > 3


def test_an_estimate_is_the_same_each_time() -> None:
    values = np.random.default_rng(2).random(50)
    assert estimate(values) == estimate(values)
    assert estimate(values).mean == pytest.approx(values.mean())


def test_pictures_of_one_prompt_count_once() -> None:
    # Ten prompts, some right with every seed and some with none: a hundred pictures tell no more than ten.
    right = np.repeat(np.arange(10) % 2, 10)
    wide, narrow = estimate(by_prompt(right, 10)), estimate(right)
    assert wide.mean == narrow.mean == 0.5
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)
    assert by_prompt([1.0, 0.0, np.nan, np.nan], 2)[0] == 0.5 and np.isnan(by_prompt([np.nan, np.nan], 2)[0])


@pytest.mark.parametrize("size", [20, 60])
def test_of_many_rivals_that_are_no_different_hardly_one_is_told_apart(size: int) -> None:
    rng = np.random.default_rng(size)
    alarms = 0
    for _ in range(400):
        chance = rng.random(size)  # prompts differ in difficulty, models do not
        right = (rng.random((11, size)) < chance) * 1.0
        alarms += any(not each.low <= 0 <= each.high for each in differences(right[0], right[1:]))
    assert alarms / 400 <= 0.07  # 5 % and what 400 trials leave open


def test_a_rival_that_is_better_is_told_apart_among_many() -> None:
    rng = np.random.default_rng(5)
    chance = rng.random(80) * 0.6
    right = (rng.random((10, 80)) < chance) * 1.0
    better = (rng.random(80) < chance + 0.35) * 1.0
    found = differences(right[0], [*right[1:], better, right[0]])
    assert found[9].low > 0 and found[9].low <= better.mean() - right[0].mean() <= found[9].high
    assert found[10] == (0, 0, 0, 80)
    alone = difference(right[0], better)
    assert found[9].high - found[9].low > alone.high - alone.low, "many comparisons have their price"
