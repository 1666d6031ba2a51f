"""Reuse of the UNet's deep features in later steps, as long as its shallow ones hardly change.

Ma et al. 2023 (DeepCache, 2312.00858): the coarse levels are most of the work, and their features change
little between two steps. DeepCache refreshes its cache at fixed intervals. Here it is refreshed when the
finest level's features, which every step computes anyway, have changed by more than a tolerance, so steps
are skipped where the features are steady and none where they change fast.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class FeatureReuse:
    """Cache of deep features during one run of a sampler.

    Attributes:
        tolerance: largest relative change (L2 norm) of the finest level's features for which the cached deep
            features are used.
    """

    tolerance: float
    _shallow: Tensor | None = field(default=None, repr=False)
    _deep: Tensor | None = field(default=None, repr=False)

    def __call__(self, shallow: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the cached deep features, or compute and cache them.

        Args:
            shallow: features of the finest level on the way down, ``[B, C, H, W]``.
            compute: runs all coarser levels, down and up.
        """
        if self._deep is not None and self._change(shallow) <= self.tolerance:
            return self._deep
        self._shallow, self._deep = shallow, compute(shallow)
        return self._deep

    def _change(self, shallow: Tensor) -> float:
        cached = self._shallow
        if cached is None or cached.shape != shallow.shape:
            return float("inf")
        return float((shallow - cached).norm() / cached.norm())
