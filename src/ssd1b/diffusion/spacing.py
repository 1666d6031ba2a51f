"""Spacings, which place a run's steps by timestep, and curves, which place them by sigma; no tensors."""

import math
from collections.abc import Callable

import numpy as np

from ssd1b.errors import InputError

# Spacings give n falling timesteps (2305.08891, table 2, and the programs named). With ``intervals``, the
# last of n + 1 points is dropped. NumPy, as in diffusers, because its last bit decides how a half is rounded.


def _leading(steps: int, count: int, offset: int, intervals: bool) -> list[float]:
    stride = count // (steps + intervals)
    return [float((steps - 1 + intervals - i) * stride + offset) for i in range(steps)]


def _trailing(steps: int, count: int, offset: int, intervals: bool) -> list[float]:
    return (np.arange(count, 0, -count / steps)[:steps].round() - 1).tolist()


def _linspace(steps: int, count: int, offset: int, intervals: bool) -> list[float]:
    return np.linspace(0, count - 1, max(steps + intervals, 2))[::-1][:steps].tolist()


def _normal(steps: int, count: int, offset: int, intervals: bool) -> list[float]:
    """ComfyUI's normal, AUTOMATIC1111's uniform: both ends included, for every sampler."""
    return _linspace(steps, count, offset, intervals=False)


def _sgm_uniform(steps: int, count: int, offset: int, intervals: bool) -> list[float]:
    """Stability's code for SDXL: the last point dropped, for every sampler."""
    return _linspace(steps, count, offset, intervals=True)


def _simple(steps: int, count: int, offset: int, intervals: bool) -> list[float]:
    """ComfyUI's simple: evenly spaced entries of the table, counted from the noisy end."""
    return [float(count - 1 - i * count // steps) for i in range(steps)]


LCM_TIMESTEPS = 50
"""Number of evenly spaced timesteps on which latent consistency models are distilled (2310.04378, 4.3)."""


def _lcm(steps: int, count: int, offset: int, intervals: bool) -> list[float]:
    """Evenly spaced timesteps of those that consistency distillation trains."""
    if steps > LCM_TIMESTEPS:
        raise InputError(f"steps must be 1 to {LCM_TIMESTEPS} with schedule 'lcm', got {steps}")
    stride = count // LCM_TIMESTEPS
    return [float((LCM_TIMESTEPS - i * LCM_TIMESTEPS // steps) * stride - 1) for i in range(steps)]


SPACINGS: dict[str, Callable[[int, int, int, bool], list[float]]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "normal": _normal,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "lcm": _lcm,
}
"""``spacing(steps, num_train_timesteps, steps_offset, intervals)`` -> falling timesteps."""


# Curves give n falling sigmas, both ends included.
def _along(steps: int, curve: Callable[[float], float]) -> list[float]:
    return [curve(i / max(steps - 1, 1)) for i in range(steps)]


def _karras(steps: int, first: float, last: float) -> list[float]:
    """Even steps in sigma^(1/7) (2206.00364, equation 5, rho = 7)."""
    root, end = first ** (1 / 7), last ** (1 / 7)
    return _along(steps, lambda share: (root + share * (end - root)) ** 7)


def _exponential(steps: int, first: float, last: float) -> list[float]:
    """Even steps in log sigma: the uniform logSNR of DPM-Solver (2206.00927)."""
    return _along(steps, lambda share: first * (last / first) ** share)


def _beta(steps: int, first: float, last: float) -> list[float]:
    """Quantiles of Beta(0.6, 0.6), dense at both ends (2407.12173), taken over sigma as in AUTOMATIC1111."""
    return _along(steps, lambda share: last + (first - last) * beta_quantile(1 - share))


def beta_quantile(probability: float, shape: float = 0.6) -> float:
    """Invert the distribution function of Beta(shape, shape): bisection of its power series (DLMF 8.17.7)."""
    if probability > 0.5:
        return 1 - beta_quantile(1 - probability, shape)

    def distribution(x: float) -> float:
        total, factor = 0.0, 1.0
        for n in range(50):  # x <= 1/2, so each term is less than half of the previous one
            total += factor / (shape + n)
            factor *= (n + 1 - shape) / (n + 1) * x
        return x**shape * total * math.gamma(2 * shape) / math.gamma(shape) ** 2

    low, high = 0.0, 0.5
    while high - low > 1e-16:
        middle = (low + high) / 2
        low, high = (middle, high) if distribution(middle) < probability else (low, middle)
    return low


CURVES: dict[str, Callable[[int, float, float], list[float]]] = {
    "karras": _karras,
    "exponential": _exponential,
    "beta": _beta,
}
"""``curve(steps, first, last)`` -> falling sigmas."""
