"""Kinds of adapters, and how each changes a weight.

A file has a few tensors for each module of a network. Their roles, such as "up" and "down", say which kind of
adapter they are. A kind is a function that returns the change of the module's weight at full strength:

    W' = W + strength * change(W)

Every kind is used at other strengths in this way, also those whose change depends on the weight (DoRA, OFT,
GLoRA and IA3). Several adapters are added up, each with the change of the original weight, so their order
does not matter. This is ComfyUI's convention. With DoRA, LyCORIS and PEFT compute other weights at strengths
other than 1, and equal ones at 1.

Functions take and return float32 tensors. On the meta device they only check shapes.

Sources: LoRA 2106.09685; LyCORIS 2309.14859 (LoHa, LoKr, Tucker decomposition); DoRA 2402.09353; IA3
2205.05638; OFT 2306.07280; BOFT 2311.06243; GLoRA 2306.07967; rsLoRA 2312.03732. LyCORIS' and PEFT's modules
are the tests' oracles.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""Tensors of one module by role, float32."""

Numbers = Mapping[str, float]
"""Numbers of one module: ``scale``, what a low-rank product is multiplied by; ``alpha`` and ``on_input``, if
the file has them."""


class ShapeError(ValueError):
    """The tensors of a module do not fit each other, or the weight."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of adapter.

    Attributes:
        roles: all roles that its tensors can have, besides ``COMMON``.
        change: returns the change of the weight, of the weight's shape. Raises KeyError for a missing role,
            ShapeError or RuntimeError for shapes that do not fit.
        ranked: role of the tensor whose first axis is the rank; several for alternatives; none without rank.
        by_row: roles of tensors with a row for each row of the weight, if a row of the change needs only its
            own row of them and of the weight; none if rows depend on each other.
    """

    roles: frozenset[str]
    change: Callable[[Tensor, Tensors, Numbers], Tensor]
    ranked: tuple[str, ...] = ()
    by_row: frozenset[str] = frozenset()


COMMON = frozenset({"alpha", "dora", "magnitude", "diff_b"})
"""Roles of tensors that go with any kind."""


def _like(change: Tensor, weight: Tensor) -> Tensor:
    """Reshape a change to the weight's shape: rows stay, and columns may be split into channels and kernel.

    A linear layer's change fits a 1x1 convolution and the other way round.
    """
    if change.shape[0] != weight.shape[0] or change.numel() != weight.numel():
        raise ShapeError
    return change.reshape(weight.shape)


def _tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Multiply a core ``[r, s, h, w]`` by ``[out, r]`` and ``[s, in]``, to ``[out, in, h, w]``."""
    return torch.einsum("mn..., om, ni -> oi...", core, up, down)


def _lora(weight: Tensor, t: Tensors, n: Numbers) -> Tensor:
    """``up @ down``, or for convolutions optionally with a core ``mid`` between them (LoCon, LoRA-C3Lier)."""
    up, down = t["up"].flatten(1), t["down"].flatten(1)
    product = _tucker(t["mid"], up, down) if "mid" in t else up @ down
    return _like(product, weight).mul_(n["scale"])


def _loha(weight: Tensor, t: Tensors, n: Numbers) -> Tensor:
    """The elementwise product of two low-rank products."""
    halves: list[Tensor] = []
    for i in ("1", "2"):
        a, b = t[f"hada_w{i}_a"], t[f"hada_w{i}_b"]
        core = t.get(f"hada_t{i}")
        halves.append(a.flatten(1) @ b.flatten(1) if core is None else _tucker(core, a.T, b))
    return _like(halves[0] * halves[1], weight).mul_(n["scale"])


def _lokr(weight: Tensor, t: Tensors, n: Numbers) -> Tensor:
    """The Kronecker product of two matrices, each of which may be a low-rank product."""
    left = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        right = t["lokr_w2"]
    elif "lokr_t2" in t:
        right = _tucker(t["lokr_t2"], t["lokr_w2_a"].T, t["lokr_w2_b"])
    else:
        right = t["lokr_w2_a"] @ t["lokr_w2_b"]
    right = right.flatten(1)
    if left.ndim != 2 or left.numel() * right.numel() != weight.numel():  # before the product is allocated
        raise ShapeError
    # LyCORIS scales nothing if both factors are complete, whatever alpha is.
    scale = 1.0 if {"lokr_w1", "lokr_w2"} <= t.keys() else n["scale"]
    return scale * _like(torch.kron(left, right), weight)


def _difference(weight: Tensor, t: Tensors, n: Numbers) -> Tensor:
    """The change itself, as a full fine-tuning has it, or a norm's."""
    return _like(t["diff"] if "diff" in t else t["w_norm"], weight)


def _replacement(weight: Tensor, t: Tensors, n: Numbers) -> Tensor:
    """A new weight."""
    return _like(t["set_weight"], weight) - weight


def _glora(weight: Tensor, t: Tensors, n: Numbers) -> Tensor:
    """``W @ a1 @ a2 + b1 @ b2``, by LyCORIS' axes: ``a1`` [in, r], ``a2`` [r, in], ``b1`` [out, r]."""
    a1, a2, b1, b2 = (t[role].flatten(1) for role in ("a1", "a2", "b1", "b2"))
    added = _like(_tucker(t["bm"], b1, b2) if "bm" in t else b1 @ b2, weight)
    return n["scale"] * (torch.einsum("oi..., ij, jk -> ok...", weight, a1, a2) + added)


def _ia3(weight: Tensor, t: Tensors, n: Numbers) -> Tensor:
    """A factor for each input or output channel: LyCORIS stores what is added to 1, PEFT the factor."""
    if "ia3_l" in t:
        factors = t["ia3_l"] - 1
        if factors.ndim != 2 or 1 not in factors.shape:
            raise ShapeError
        on_input = factors.shape[0] == 1
    else:
        factors, on_input = t["weight"], bool(n["on_input"])
    axis = 1 if on_input else 0
    if factors.numel() != weight.shape[axis]:
        raise ShapeError
    return weight * factors.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def _oft(weight: Tensor, t: Tensors, n: Numbers) -> Tensor:
    """A rotation of the output channels: block by block (OFT), or in butterfly stages (BOFT)."""
    blocks = t["oft_blocks"]
    size, outputs = blocks.shape[-1], weight.shape[0]
    if blocks.shape[-2:] != (size, size) or outputs % size:
        raise ShapeError
    skew = blocks - blocks.transpose(-1, -2)
    if constraint := n.get("alpha", 0.0) * outputs:
        skew = skew * (constraint / (skew.norm() + 1e-8)).clamp(max=1)
    identity = torch.eye(size, device=blocks.device)
    rotations = (identity + skew) @ torch.linalg.inv(identity - skew)
    if blocks.ndim == 3:
        pieces = weight.reshape(outputs // size, size, -1)
        rotated = torch.einsum("bnm, bnx -> bmx", rotations, pieces).reshape(weight.shape)
    else:
        rotated = weight.flatten(1)
        for stage, turn in enumerate(rotations):
            stride = 2**stage * size // 2
            mixed = rotated.unflatten(0, (-1, 2, stride)).transpose(1, 2)
            turned = torch.einsum("bij, bjx -> bix", turn, mixed.reshape(outputs // size, size, -1))
            rotated = turned.reshape(-1, stride, 2, rotated.shape[1]).transpose(1, 2).flatten(0, 2)
        rotated = rotated.reshape(weight.shape)
    if "rescale" in t:
        rotated = rotated * t["rescale"].reshape(-1, *[1] * (weight.ndim - 1))
    return rotated - weight


KINDS: Mapping[str, Kind] = MappingProxyType({
    "LoRA": Kind(frozenset({"down", "up", "mid", "up_bias"}), _lora, ("down",), frozenset({"up"})),
    "LoHa": Kind(
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}),
        _loha, ("hada_w1_b",), frozenset({"hada_w1_a", "hada_w2_a"}),
    ),
    "LoKr": Kind(
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
        _lokr, ("lokr_w2_b", "lokr_w1_b"),
    ),
    "difference": Kind(frozenset({"diff"}), _difference, by_row=frozenset({"diff"})),
    "norm": Kind(frozenset({"w_norm", "b_norm"}), _difference),
    "replacement": Kind(frozenset({"set_weight"}), _replacement, by_row=frozenset({"set_weight"})),
    "GLoRA": Kind(frozenset({"a1", "a2", "b1", "b2", "bm"}), _glora, ("a2",)),
    "IA3": Kind(frozenset({"weight", "on_input", "ia3_l"}), _ia3),
    "OFT": Kind(frozenset({"oft_blocks", "rescale"}), _oft),
    "bias": Kind(frozenset(), _difference),
})  # fmt: skip
"""All kinds by name."""

_MIXING = frozenset({"mid", "hada_t1", "hada_t2", "dora", "magnitude"})
"""Roles of tensors with which the rows of any change depend on each other, or are columns of its tensors."""

ADDITIVE = frozenset({"LoRA", "LoHa", "LoKr", "difference", "norm", "bias"})
"""Kinds whose change does not depend on the weight."""


def is_by_row(kind: str, roles: frozenset[str]) -> bool:
    """Whether a change with tensors of these roles can be computed some rows at a time, see ``rows_of``."""
    return bool(KINDS[kind].by_row & roles) and not _MIXING & roles


def rows_of(kind: str, tensors: Tensors, rows: slice) -> Tensors:
    """Return the tensors from which ``weight_change`` computes these rows, given these rows of the weight."""
    by_row = KINDS[kind].by_row
    return {role: tensor[rows] if role in by_row else tensor for role, tensor in tensors.items()}


def kind_of(roles: frozenset[str]) -> str | None:
    """Find the kind of a module's tensors by their roles; None if they are of several kinds."""
    own = roles - COMMON
    return next((name for name, kind in KINDS.items() if own <= kind.roles and (own or not kind.roles)), None)


def rank_of(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the rank of a module's tensors; None for kinds without one, and for complete LoKr factors."""
    return next((shapes[role][0] for role in KINDS[kind].ranked if shapes.get(role)), None)


def weight_change(kind: str, weight: Tensor, tensors: Tensors, numbers: Numbers) -> Tensor:
    """Compute the change of a module's weight at full strength.

    Args:
        kind: one of ``KINDS``.
        weight: the module's weight, ``[out, in]``, ``[out, in, h, w]`` or ``[channels]``.
        tensors: by role, on the weight's device.
        numbers: see ``Numbers``.

    Returns:
        The change, of the weight's shape.

    Raises:
        KeyError: a tensor is missing.
        ShapeError, RuntimeError: shapes do not fit.
    """
    change = KINDS[kind].change(weight, tensors, numbers)
    if "magnitude" not in tensors and "dora" not in tensors:
        return change
    directions = weight + change
    magnitude, axis = _magnitude(weight, tensors)
    others = [i for i in range(weight.ndim) if i != axis]
    norms = torch.linalg.vector_norm(directions, dim=others, keepdim=True)
    return directions * (magnitude / norms.clamp(min=torch.finfo(torch.float32).tiny)) - weight


def _magnitude(weight: Tensor, tensors: Tensors) -> tuple[Tensor, int]:
    """Return DoRA's magnitudes, in a shape that broadcasts to the weight, and the axis that they belong to.

    PEFT's belong to outputs, whatever their shape. Others, called ``dora_scale``, tell by theirs: [out, 1] is
    for each output (LyCORIS from version 3), [1, in] for each input (LyCORIS before, kohya, OneTrainer).
    """
    given = tensors["magnitude"] if "magnitude" in tensors else tensors["dora"]
    per_input = "magnitude" not in tensors and given.ndim > 1 and given.shape[:2] == (1, weight.shape[1])
    axis = 1 if per_input and weight.shape[:2] != (1, 1) else 0
    if given.numel() != weight.shape[axis]:
        raise ShapeError
    return given.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]), axis


def bias_change(bias: Tensor, tensors: Tensors, numbers: Numbers) -> Tensor | None:
    """Compute the change of a module's bias ``[out]`` at full strength; None if it does not change.

    Raises:
        ShapeError: the shapes do not fit.
    """
    found = None
    if "up_bias" in tensors:
        found = numbers["scale"] * tensors["up_bias"]
    for role in ("diff_b", "b_norm"):
        found = tensors.get(role, found)
    if "ia3_l" in tensors and tensors["ia3_l"].shape[0] == bias.shape[0]:
        found = bias * (tensors["ia3_l"].flatten() - 1)
    if found is not None and found.shape != bias.shape:
        raise ShapeError
    return found


def changes_weight(roles: frozenset[str]) -> bool:
    """Whether tensors with these roles change the weight; those of a bias alone do not."""
    return bool(roles - {"alpha", "diff_b", "b_norm"})


def changes_bias(roles: frozenset[str]) -> bool:
    """Whether tensors with these roles need a module with a bias; PEFT's IA3 also scales one, if present."""
    return bool(roles & {"up_bias", "diff_b", "b_norm"})
