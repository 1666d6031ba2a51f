"""Estimates with their uncertainty, by bootstrap over prompts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean with its 95 % confidence interval, over ``size`` values."""

    mean: float
    low: float
    high: float
    size: int


def estimate(values: ArrayLike) -> Estimate:
    """Estimate a mean by percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

    Values are independent of each other; those that are NaN were not asked for and do not count.
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(known.mean())
    if np.ptp(known) == 0:
        return Estimate(mean, mean, mean, len(known))

    from scipy.stats import bootstrap  # slow to import

    interval = bootstrap(
        (known,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(known))


def by_prompt(values: ArrayLike, seeds: int) -> NDArray[np.float64]:
    """Average the pictures of each prompt, which stand together: they are not independent of each other."""
    return np.asarray(values, float).reshape(-1, seeds).mean(axis=1)


def difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Estimate by how much the second mean exceeds the first, paired value by value.

    The two can be told apart where the interval does not hold zero.
    """
    return estimate(np.asarray(second, float) - np.asarray(first, float))
