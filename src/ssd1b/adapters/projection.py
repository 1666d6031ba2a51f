"""Moving a LoRA from one model to another by the subspaces of their weights, after ProLoRA (2506.04244).

The leading singular vectors of a weight span the subspace that it works in; the rest is its null space. The
part of a change in the source's subspace is projected onto the target's, and the part in the null space onto
the target's null space, for outputs and for inputs:

    change_t = A change_s B,    A = P_t P_s + (1 - P_t)(1 - P_s),    B the same for inputs

with the projections P onto the subspaces. ProLoRA leaves out what is in the subspace on one side and in the
null space on the other; here it is kept, so that between equal models nothing changes. The rank stays.
"""

from typing import NamedTuple

from torch import Tensor

from ssd1b.adapters.low_rank import decompose
from ssd1b.adapters.ranks import Cut


class Subspaces(NamedTuple):
    """Orthonormal bases of what a weight works in.

    Attributes:
        outputs: ``[out, k]``, float64.
        inputs: ``[columns, k]``, float64.
    """

    outputs: Tensor
    inputs: Tensor


def subspaces(weight: Tensor, share: float) -> Subspaces:
    """Return the leading singular vectors of a weight that hold this share of its energy.

    Args:
        weight: ``[out, in]`` or a convolution's ``[out, in, h, w]``, whose columns are ``in h w``.
        share: 0 to 1, of the sum of squares of the singular values.
    """
    whole = decompose(weight.flatten(1))
    found = whole.cut(Cut(energy=share).of(whole.values))
    roots = found.values.sqrt()
    return Subspaces(found.up / roots, (found.down / roots[:, None]).T)


def project(up: Tensor, down: Tensor, source: Subspaces, target: Subspaces) -> tuple[Tensor, Tensor]:
    """Move ``up @ down``, ``[out, r]`` and ``[r, columns]``, from one weight to another; in float64."""
    moved = _moved(up.double(), source.outputs, target.outputs)
    return moved, _moved(down.double().T, source.inputs, target.inputs).T


def _moved(vectors: Tensor, source: Tensor, target: Tensor) -> Tensor:
    inside = source @ (source.T @ vectors)
    outside = vectors - inside
    return target @ (target.T @ inside) + outside - target @ (target.T @ outside)
