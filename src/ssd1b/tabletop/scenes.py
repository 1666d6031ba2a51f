"""What stands on the table: scenes as values, drawn from a stream that can be entered at any index.

World units: the picture's square spans [-1, 1] to the right and upwards; x runs to the right, y up from the
table, depth away from the viewer.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from ssd1b.tabletop.degradations import DEGRADATIONS
from ssd1b.tabletop.shapes import SHAPES

Split: TypeAlias = Literal["train", "held_out"]
Relation: TypeAlias = Literal["left", "right", "front", "behind"]
T = TypeVar("T")

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 32, 36),
    "green": (38, 146, 52),
    "blue": (38, 74, 208),
    "yellow": (242, 218, 40),
    "orange": (248, 128, 22),
    "purple": (124, 46, 178),
    "pink": (246, 132, 184),
    "brown": (112, 64, 30),
    "cyan": (44, 204, 218),
    "white": (244, 244, 244),
    "gray": (128, 128, 130),
    "black": (30, 30, 32),
}
"""The colours of solids and backgrounds, as sRGB."""

SIZES: dict[str, tuple[float, float]] = {"small": (0.20, 0.24), "large": (0.38, 0.43)}
"""The least and greatest scale of a unit shape."""

MATERIALS = ("rubber", "metal")

HELD_OUT = frozenset(
    {
        ("sphere", "purple", "rubber"),
        ("sphere", "yellow", "metal"),
        ("cube", "brown", "rubber"),
        ("cube", "cyan", "metal"),
        ("cone", "white", "rubber"),
        ("cone", "red", "metal"),
        ("cylinder", "orange", "metal"),
        ("pyramid", "green", "rubber"),
        ("torus", "pink", "rubber"),
        ("torus", "blue", "metal"),
    }
)
"""Combinations of shape, colour and material (7 % of all) that the training stream never shows."""

_COMBINATIONS = tuple(itertools.product(SHAPES, COLORS, MATERIALS))
_KNOWN = tuple(combination for combination in _COMBINATIONS if combination not in HELD_OUT)
_NEW = tuple(combination for combination in _COMBINATIONS if combination in HELD_OUT)
_SPLITS: dict[Split, tuple[tuple[str, str, str], ...]] = {"train": _KNOWN, "held_out": _NEW}

TWO_SOLIDS = 0.6
IN_DEPTH = 0.35
"""Of two solids, the share that stand one behind the other; else they stand side by side."""

DEGRADED = 0.25

_MARGIN = 0.03  # between a solid and the picture's edge
_GAP = 0.05  # between two solids, so that they never touch
_DEPTH = 0.55  # solids stand at most so far before or behind the middle of the table
_HIDDEN = (0.10, 0.45)  # of the narrower of two solids in depth, the share of its width that overlaps
_APART = 0.7  # the least distance in depth that shows as such


@dataclass(frozen=True, slots=True, kw_only=True)
class Solid:
    """One thing on the table.

    Attributes:
        shape: a key of ``SHAPES``; color: of ``COLORS``; size: of ``SIZES``; material: one of ``MATERIALS``.
        scale: the factor on the unit shape, within the range of ``size``.
        yaw: the turn about the vertical in radians.
        x: its middle, to the right; depth: away from the viewer.
    """

    shape: str
    color: str
    size: str
    material: str
    scale: float
    yaw: float
    x: float
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Where the light stands, in radians: azimuth to the right of the viewer, elevation above the table."""

    azimuth: float
    elevation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything a picture shows.

    Attributes:
        solids: one or two, in the order in which the caption names them.
        background: the colour of table and backdrop, a key of ``COLORS``.
        degradation: a key of ``DEGRADATIONS`` or None.
        seed: of the degradation's randomness.
    """

    solids: tuple[Solid, ...]
    background: str
    light: Light
    degradation: str | None
    seed: int


def half_width(solid: Solid) -> float:
    """Half of the width that a solid, turned as it is, can take in the picture."""
    width, _, depth = SHAPES[solid.shape].extent
    return solid.scale * (width * math.cos(solid.yaw) + depth * abs(math.sin(solid.yaw)))


def half_depth(solid: Solid) -> float:
    """Half of the depth that a solid, turned as it is, can take on the table."""
    width, _, depth = SHAPES[solid.shape].extent
    return solid.scale * (depth * math.cos(solid.yaw) + width * abs(math.sin(solid.yaw)))


def scene(seed: int, index: int, *, split: Split = "train") -> Scene:
    """Draw the scene at ``index`` of the stream ``seed``: the same three arguments give the same scene.

    In the ``held_out`` split exactly one solid has a combination of ``HELD_OUT``.
    """
    stream = np.random.SeedSequence([seed, index, list(_SPLITS).index(split)])
    rng = np.random.Generator(np.random.Philox(stream))
    kinds = [_choose(_SPLITS[split], rng)]
    if rng.random() < TWO_SOLIDS:
        # Two solids differ in shape or colour, so that words can tell them apart.
        kinds.append(_choose([kind for kind in _KNOWN if kind[:2] != kinds[0][:2]], rng))
    solids = [_solid(*kind, rng) for kind in kinds]
    if rng.random() < 0.5:
        solids.reverse()
    arranged = _one_behind_the_other if len(solids) == 2 and rng.random() < IN_DEPTH else _side_by_side
    return Scene(
        solids=arranged(solids, rng),
        background=_choose(tuple(COLORS), rng),
        light=Light(azimuth=_between(-1.15, -0.65, rng), elevation=_between(0.75, 0.95, rng)),
        degradation=_choose(tuple(DEGRADATIONS), rng) if rng.random() < DEGRADED else None,
        seed=int(rng.random() * 2**32),
    )


def _solid(shape: str, color: str, material: str, rng: np.random.Generator) -> Solid:
    size = _choose(tuple(SIZES), rng)
    turn = SHAPES[shape].turn
    return Solid(
        shape=shape,
        color=color,
        size=size,
        material=material,
        scale=_between(*SIZES[size], rng),
        yaw=_between(-turn, turn, rng),
        x=0.0,
        depth=_between(-_DEPTH, _DEPTH, rng),
    )


def relation(first: Solid, second: Solid) -> Relation:
    """Where the first of two solids stands, seen from the second.

    Solids side by side are "left" or "right" of each other, however deep they stand; solids that overlap in
    the picture stand "front" or "behind".
    """
    if abs(first.x - second.x) >= half_width(first) + half_width(second):
        return "left" if first.x < second.x else "right"
    return "front" if first.depth < second.depth else "behind"


def _one_behind_the_other(solids: list[Solid], rng: np.random.Generator) -> tuple[Solid, ...]:
    """Stand two solids one behind the other, shifted to the side so that the one behind can be recognised."""
    widths = [2 * half_width(solid) for solid in solids]
    least = max(_APART, sum(half_depth(solid) for solid in solids) + _GAP)
    apart = _between(least, 2 * _DEPTH, rng)
    front = _between(-_DEPTH, _DEPTH - apart, rng)
    shift = sum(widths) / 2 - _between(*_HIDDEN, rng) * min(widths)
    # Offsets from the first solid's middle, then the pair as a whole within the frame.
    offsets = (0.0, shift if rng.random() < 0.5 else -shift)
    low = min(offset - width / 2 for offset, width in zip(offsets, widths, strict=True))
    high = max(offset + width / 2 for offset, width in zip(offsets, widths, strict=True))
    x = _between(-1 + _MARGIN - low, 1 - _MARGIN - high, rng)
    depths = (front, front + apart) if rng.random() < 0.5 else (front + apart, front)
    return tuple(
        replace(solid, x=x + offset, depth=depth)
        for solid, offset, depth in zip(solids, offsets, depths, strict=True)
    )


def _side_by_side(solids: list[Solid], rng: np.random.Generator) -> tuple[Solid, ...]:
    """Stand the solids beside each other, the free width shared out at random; their order stays as it is."""
    widths = [2 * half_width(solid) for solid in solids]
    free = 2 - 2 * _MARGIN - sum(widths) - _GAP * (len(solids) - 1)
    assert free >= 0, "the greatest sizes must fit beside each other"
    left_to_right = list(range(len(solids)))
    if rng.random() < 0.5:
        left_to_right.reverse()
    cuts = sorted(_between(0.0, free, rng) for _ in solids)
    placed = list(solids)
    edge = -1 + _MARGIN
    for position, cut in zip(left_to_right, cuts, strict=True):
        placed[position] = replace(solids[position], x=edge + cut + widths[position] / 2)
        edge += widths[position] + _GAP
    return tuple(placed)


def _choose(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.random() * len(options))]


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * float(rng.random())
