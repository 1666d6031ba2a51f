"""Intervals cover what they say, and a paired difference sees what an unpaired one cannot."""

import numpy as np
import pytest

from ssd1b.evaluate.statistics import by_prompt, difference, estimate


def test_the_interval_covers_the_true_mean_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = [(e := estimate(rng.random(60) < 0.8)).low <= 0.8 <= e.high for _ in range(200)]
    assert 0.88 <= np.mean(covered) <= 0.99


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
