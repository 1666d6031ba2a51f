"""The singular value decomposition of a change of a weight, as a low-rank product.

By Eckart and Young, the largest singular values give the best product of each rank.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """A product ``up @ down`` in float64, by falling singular values.

    Attributes:
        up: ``[out, k]``; each column has the norm of the square root of its singular value.
        down: ``[k, columns]``; each row has the same norm as its column of ``up``.
        values: the singular values ``[k]``, in falling order.
    """

    up: Tensor
    down: Tensor
    values: Tensor

    def cut(self, rank: int) -> "LowRank":
        """Keep the largest singular values."""
        return LowRank(self.up[:, :rank], self.down[:rank], self.values[:rank])


def decompose(matrix: Tensor) -> LowRank:
    """Decompose a matrix ``[out, columns]`` exactly; singular values below rounding are left out.

    Vectors come from the smaller Gram matrix in float64, which for a wide matrix takes a sixth of the time of
    a singular value decomposition. Values below 1e-7 of the largest are noise of float32 weights.
    """
    matrix = matrix.double()
    wide = matrix.shape[0] <= matrix.shape[1]
    m = matrix if wide else matrix.T
    left = torch.linalg.eigh(m @ m.T).eigenvectors.flip(1)
    right = left.T @ m
    values = torch.linalg.vector_norm(right, dim=1)
    return _balanced(left, values, right, of=wide)


def decompose_product(up: Tensor, down: Tensor) -> LowRank:
    """Decompose ``up @ down``, ``[out, r]`` and ``[r, columns]``, without the product if r is small."""
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        return decompose(up.double() @ down.double())
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    return _balanced(left @ u, values, values[:, None] * (v @ right.T), of=True)


def _balanced(left: Tensor, values: Tensor, right: Tensor, *, of: bool) -> LowRank:
    """Give orthonormal columns and scaled rows equal norms; ``of`` is False for those of the transpose."""
    kept = int((values > 1e-7 * values.max()).sum()) if values.numel() and values.max() > 0 else 0
    values = values[:kept]
    roots = values.sqrt()
    up, down = left[:, :kept] * roots, right[:kept] / roots[:, None]
    return LowRank(up, down, values) if of else LowRank(down.T, up.T, values)
