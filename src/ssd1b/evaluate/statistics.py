"""Means with confidence intervals, by bootstrap over prompts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
_VALUES_AT_ONCE = 2**23


class Estimate(NamedTuple):
    """A mean with its 95% confidence interval, over ``size`` values."""

    mean: float
    low: float
    high: float
    size: int


def estimate(values: ArrayLike) -> Estimate:
    """Estimate a mean; see ``estimates``."""
    return estimates(np.asarray(values, float)[None])[0]


def estimates(rows: ArrayLike) -> list[Estimate]:
    """Estimate the mean of each row by percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

    The percentiles are widened to match Student's quantiles, because intervals of few values would otherwise
    be too narrow (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.4.1).

    Args:
        rows: ``[k, n]``; the values of a row are independent of each other; NaN is ignored.
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
    """Estimate the means of rows without gaps."""
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
    """Average the images of each prompt, which are consecutive; they are not independent of each other."""
    return np.asarray(values, float).reshape(-1, seeds).mean(axis=1)


def difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Estimate by how much the second mean exceeds the first, paired value by value.

    The two are statistically distinguishable if the interval does not contain zero.
    """
    return estimate(np.asarray(second, float) - np.asarray(first, float))


def differences(reference: ArrayLike, rivals: ArrayLike) -> list[Estimate]:
    """Estimate by how much each rival exceeds a reference, with simultaneous 95% intervals.

    Among any number of rivals with equal means, any is found different in at most 5% of cases. The method is
    a bootstrap of the largest standardised deviation (Westfall & Young 1993, section 2.6) with Student's
    widening.

    Args:
        reference: ``[n]``, one value for each of n independent units.
        rivals: ``[k, n]``, values of the same units, without gaps.
    """
    table = np.atleast_2d(np.asarray(rivals, float)) - np.asarray(reference, float)
    size = table.shape[1]
    means, errors = table.mean(axis=1), table.std(axis=1) / np.sqrt(size)
    varies = errors > 0
    reach = np.zeros(len(table))
    if varies.any():
        from scipy.stats import norm, t  # slow to import

        rng = np.random.default_rng(0)
        weights = rng.multinomial(size, np.full(size, 1 / size), RESAMPLES) / size
        deviations = (weights @ table[varies].T - means[varies]) / errors[varies]
        largest = np.quantile(np.abs(deviations).max(axis=1), CONFIDENCE)
        outside = norm.sf(largest)  # the same tail probability under Student's t
        reach[varies] = t.isf(outside, size - 1) * np.sqrt(size / (size - 1)) * errors[varies]
    found = zip(means.tolist(), (means - reach).tolist(), (means + reach).tolist(), strict=True)
    return [Estimate(mean, low, high, size) for mean, low, high in found]
