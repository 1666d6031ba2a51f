"""The guard, which skips gradients that are not finite or far longer than those before."""

import math
from collections import deque
from statistics import median

import torch
from torch import Tensor

from ssd1b.errors import FailedError
from ssd1b.training.settings import LoopSettings

_WINDOW = 100
"""Number of remembered gradient norms."""

_ENOUGH = 10
"""Number of norms required for a median."""


class Guard:
    """Remembers gradient norms and counts skipped gradients.

    Attributes:
        skipped: number of gradients skipped so far.
    """

    def __init__(self, settings: LoopSettings) -> None:
        self.skipped = 0
        self._in_a_row = 0
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._settings = settings

    def lets_through(self, norm: float) -> bool:
        """Return whether to follow a gradient of this norm.

        Raises:
            InputError: too many in a row were skipped.
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
            what = f"longer than {factor} times the median" if spike else "not finite"
            often = f"{self._in_a_row} steps in a row"
            raise FailedError(f"the gradient was {what}, {often}: lower learning_rate")
        return False

    def state(self) -> Tensor:
        """Return the counts and the norms."""
        return torch.tensor([self.skipped, self._in_a_row, *self._norms], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Continue from what ``state`` gave."""
        skipped, in_a_row, *norms = state.tolist()
        self.skipped, self._in_a_row = int(skipped), int(in_a_row)
        self._norms.extend(norms)
