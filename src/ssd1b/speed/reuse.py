"""Deep features of the UNet kept from step to step while what leads to them hardly changes.

Ma et al. 2023 (DeepCache, 2312.00858): between two steps the features of the coarse levels change little,
and they are most of the work. Their cache is renewed every so many steps; here it is renewed when the finest
level's features, which are computed at every step anyhow, have moved by more than a tolerance since it was
filled: work is left out where little happens, and none where much does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class FeatureReuse:
    """The memory of one run of a sampler.

    Attributes:
        tolerance: the largest change of the finest level's features, by their norm, for which the deep ones
            are taken from memory.
    """

    tolerance: float
    _shallow: Tensor | None = field(default=None, repr=False)
    _deep: Tensor | None = field(default=None, repr=False)

    def __call__(self, shallow: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Deep features from memory, or computed and remembered.

        Args:
            shallow: features of the finest level on the way down, ``[B, C, H, W]``.
            compute: the way through all coarser levels and back.
        """
        if self._deep is not None and self._change(shallow) <= self.tolerance:
            return self._deep
        self._shallow, self._deep = shallow, compute(shallow)
        return self._deep

    def _change(self, shallow: Tensor) -> float:
        before = self._shallow
        if before is None or before.shape != shallow.shape:
            return float("inf")
        return float((shallow - before).norm() / before.norm())
