"""Estimates with their uncertainty, by bootstrap over prompts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
_VALUES_AT_ONCE = 2**23


class Estimate(NamedTuple):
    """A mean with its 95 % confidence interval, over ``size`` values."""

    mean: float
    low: float
    high: float
    size: int


def estimate(values: ArrayLike) -> Estimate:
    """Estimate a mean; see ``estimates``."""
    return estimates(np.asarray(values, float)[None])[0]


def estimates(rows: ArrayLike) -> list[Estimate]:
    """Estimate the mean of each row by percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

    The percentiles lie as far out as Student's quantiles do, without which intervals of few values are too
    narrow (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.4.1).

    Args:
        rows: ``[k, n]``; values of a row are independent of each other; those that are NaN were not asked
            for and do not count.
    """
    table = np.atleast_2d(np.asarray(rows, float))
    known = ~np.isnan(table)
    found: list[Estimate] = [Estimate(np.nan, np.nan, np.nan, 0)] * len(table)
    # Rows with gaps in the same places are resampled together, which is much faster than one by one.
    for mask in np.unique(known, axis=0) if len(table) else ():
        chosen = np.flatnonzero((known == mask).all(axis=1))
        if mask.any():
            for row, each in zip(chosen, _estimates(table[chosen][:, mask]), strict=True):
                found[row] = each
    return found


def _estimates(table: NDArray[np.float64]) -> list[Estimate]:
    """Of rows without gaps."""
    size = table.shape[1]
    means = table.mean(axis=1)
    lows, highs = means.copy(), means.copy()
    varies = np.ptp(table, axis=1) > 0
    if varies.any():
        from scipy.stats import bootstrap, norm, t  # slow to import

        quantile = np.sqrt(size / (size - 1)) * t.ppf((1 - CONFIDENCE) / 2, size - 1)
        outside = float(norm.cdf(quantile))
        interval = bootstrap(
            (table[varies],), np.mean, axis=1, confidence_level=1 - 2 * outside, n_resamples=RESAMPLES,
            method="percentile", batch=max(1, _VALUES_AT_ONCE // table[varies].size), rng=0,
        ).confidence_interval  # fmt: skip
        lows[varies], highs[varies] = interval.low, interval.high
    found = zip(means.tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [Estimate(mean, low, high, size) for mean, low, high in found]


def by_prompt(values: ArrayLike, seeds: int) -> NDArray[np.float64]:
    """Average the pictures of each prompt, which stand together: they are not independent of each other."""
    return np.asarray(values, float).reshape(-1, seeds).mean(axis=1)


def difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Estimate by how much the second mean exceeds the first, paired value by value.

    The two can be told apart where the interval does not hold zero.
    """
    return estimate(np.asarray(second, float) - np.asarray(first, float))
