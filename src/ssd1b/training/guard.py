"""Which gradients are followed: none that is not finite, and none far longer than those before."""

import math
from collections import deque
from statistics import median

import torch
from torch import Tensor

from ssd1b.errors import InputError
from ssd1b.training.settings import LoopSettings

_WINDOW = 100
"""Gradients whose lengths are remembered."""

_ENOUGH = 10
"""Lengths from which a median is one."""


class Guard:
    """Remembers how long gradients were, and how many were not followed.

    Attributes:
        skipped: gradients that were not followed, so far.
    """

    def __init__(self, settings: LoopSettings) -> None:
        self.skipped = 0
        self._in_a_row = 0
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._settings = settings

    def lets_through(self, norm: float) -> bool:
        """Whether a gradient of this length may reach the weights.

        Raises:
            InputError: too many in a row may not.
        """
        factor = self._settings.spike_factor
        usual = median(self._norms) if len(self._norms) >= _ENOUGH else math.inf
        spike = factor is not None and norm > factor * usual
        if math.isfinite(norm):
            self._norms.append(norm)
            if not spike:
                self._in_a_row = 0
                return True
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self._settings.max_skipped:
            what = f"longer than {factor} times the usual" if spike else "not finite"
            raise InputError(f"the gradient was {what}, {self._in_a_row} steps in a row: lower learning_rate")
        return False

    def state(self) -> Tensor:
        """Everything that is remembered."""
        return torch.tensor([self.skipped, self._in_a_row, *self._norms], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Remember what ``state`` told."""
        skipped, in_a_row, *norms = state.tolist()
        self.skipped, self._in_a_row = int(skipped), int(in_a_row)
        self._norms.extend(norms)
