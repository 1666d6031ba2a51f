"""How many of a change's singular values are kept; no torch.

The rules are those of sd-scripts' ``networks/resize_lora.py``, by their names there; "energy" is the square
of its "sv_fro".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from ssd1b.errors import InputError
from ssd1b.validation import Range, validated

LARGEST_RANK = 4096

Rank = Annotated[int, Range(1, LARGEST_RANK)]
Share = Annotated[float, Range(0, 1)]
Ratio = Annotated[float, Range(1, 1e7)]


def _reaching(shares: Any, wanted: float) -> int:
    """Count the values until their share reaches what is wanted, up to rounding."""
    return int((shares < wanted - 1e-9).sum()) + 1


RULES: Mapping[str, Callable[[Any, float], int]] = MappingProxyType({
    "energy": lambda s, share: _reaching(s.square().cumsum(0) / s.square().sum(), share),
    "sv_fro": lambda s, share: _reaching(s.square().cumsum(0) / s.square().sum(), share * share),
    "sv_cumulative": lambda s, share: _reaching(s.cumsum(0) / s.sum(), share),
    "sv_ratio": lambda s, ratio: int((s > s[0] / ratio).sum()),
})  # fmt: skip
"""The rank by each rule, from a tensor of singular values in falling order."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The rank of each module, the smallest of those that are given.

    Attributes:
        rank: this rank.
        energy: the smallest rank that keeps this share of the sum of squares of the singular values.
        sv_fro: that of its root, the Frobenius norm.
        sv_cumulative: that of the sum of the singular values.
        sv_ratio: all singular values above the largest divided by this.
    """

    rank: Rank | None = None
    energy: Share | None = None
    sv_fro: Share | None = None
    sv_cumulative: Share | None = None
    sv_ratio: Ratio | None = None

    def __post_init__(self) -> None:
        """Check that something is given."""
        if all(getattr(self, name) is None for name in ("rank", *RULES)):
            raise InputError("give a rank, or a share of the energy to keep")

    def of(self, values: Any) -> int:
        """Return the rank for singular values ``[k]`` in falling order: at least 1; 0 if there are none."""
        if not len(values):
            return 0
        chosen = [rule(values, x) for name, rule in RULES.items() if (x := getattr(self, name)) is not None]
        return max(1, min([*chosen, len(values), *([] if self.rank is None else [self.rank])]))
