"""Scenes as data, and random streams of scenes with access at any index.

World units: the image's square spans [-1, 1] to the right and upwards; x runs to the right, y up from the
table, depth away from the viewer.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from ssd1b.tabletop.world.degradations import DEGRADATIONS
from ssd1b.tabletop.world.shapes import SHAPES, shape_of

Split: TypeAlias = Literal["train", "held_out"]
Relation: TypeAlias = Literal["left", "right", "front", "behind", "above", "below"]
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
"""Colours of solids and backgrounds in sRGB."""

SIZES: dict[str, tuple[float, float]] = {"small": (0.20, 0.24), "large": (0.38, 0.43)}
"""Smallest and largest scale of a unit shape."""

MATERIALS = ("rubber", "metal")
"""The materials of the streams of scenes."""

NEW_MATERIALS = ("banded",)
"""Materials that no stream has: banded is rubber with white rings; see ``subjects.py``."""

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
"""Held-out combinations of shape, colour and material, 7 % of all; no training scene has one."""

_COMBINATIONS = tuple(itertools.product(SHAPES, COLORS, MATERIALS))
_SEEN_COMBINATIONS = tuple(combination for combination in _COMBINATIONS if combination not in HELD_OUT)
_HELD_OUT_COMBINATIONS = tuple(combination for combination in _COMBINATIONS if combination in HELD_OUT)
_SPLITS: dict[Split, tuple[tuple[str, str, str], ...]] = {
    "train": _SEEN_COMBINATIONS,
    "held_out": _HELD_OUT_COMBINATIONS,
}

PATTERNS = ("checkered", "striped", "dotted")
"""Patterns of the table and its backdrop."""

CARRIERS = ("cube", "cylinder")
"""Shapes on which another solid can stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lighting:
    """A kind of light that captions name.

    Attributes:
        azimuth: range in radians to the right of the viewer.
        elevation: range in radians above the table.
        tint: factors on red, green and blue in linear light.
    """

    azimuth: tuple[float, float] = (-1.15, -0.65)
    elevation: tuple[float, float] = (0.75, 0.95)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


USUAL_LIGHT = Lighting()
LIGHTINGS: dict[str, Lighting] = {
    "lit from the right": Lighting(azimuth=(0.65, 1.15)),
    "in low sunlight": Lighting(elevation=(0.4, 0.5)),
    "in warm light": Lighting(tint=(1.0, 0.78, 0.5)),
    "in dim light": Lighting(tint=(0.4, 0.4, 0.46)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Frequencies in a stream of scenes; with a share of 0, captions do not use the words either.

    Attributes:
        several_solids: share of scenes with more than one solid.
        three_solids: share of scenes with three small solids in a row.
        in_depth: share of pairs that stand one behind the other; other pairs stand side by side.
        stacked: share of pairs with one on the other, if one of them can carry the other.
        degraded: share of degraded images.
        patterned: share of backgrounds with one of ``PATTERNS``.
        lit: share of scenes in one of ``LIGHTINGS``.
    """

    several_solids: float = 0.6
    three_solids: float = 0.0
    in_depth: float = 0.35
    stacked: float = 0.0
    degraded: float = 0.25
    patterned: float = 0.0
    lit: float = 0.0


PLAIN = World()
WORLDS = {
    "plain": PLAIN,
    "rich": World(several_solids=0.7, three_solids=0.2, stacked=0.4, patterned=0.3, lit=0.3),
}
"""Worlds by name. The shipped miniatures were trained on the plain one, which two cores can learn."""

MARGIN = 0.03  # between a solid and the image's edge
_GAP = 0.05  # smallest gap between two solids
_DEPTH = 0.55  # largest distance before or behind the middle of the table
_OVERLAP = (0.10, 0.45)  # of two solids in depth, as a share of the narrower one's width
_MIN_DEPTH_GAP = 0.7  # smallest visible distance in depth


@dataclass(frozen=True, slots=True, kw_only=True)
class Solid:
    """A solid on the table.

    Attributes:
        shape: a key of ``SHAPES`` or ``NEW_SHAPES``.
        color: a key of ``COLORS``.
        size: a key of ``SIZES``.
        material: one of ``MATERIALS`` or ``NEW_MATERIALS``.
        scale: factor on the unit shape, within the range of ``size``.
        yaw: rotation about the vertical in radians.
        x: position of the middle to the right.
        depth: position of the middle away from the viewer.
        lift: height of the underside above the table.
    """

    shape: str
    color: str
    size: str
    material: str
    scale: float
    yaw: float
    x: float
    depth: float
    lift: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """The direction and colour of the light.

    Attributes:
        azimuth: in radians to the right of the viewer.
        elevation: in radians above the table.
        tint: factors on red, green and blue in linear light.
    """

    azimuth: float
    elevation: float
    tint: tuple[float, float, float] = USUAL_LIGHT.tint


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that an image shows.

    Attributes:
        solids: one to three, in the caption's order; three stand from left to right.
        background: colour of table and backdrop, a key of ``COLORS``.
        light: direction and colour of the light.
        degradation: a key of ``DEGRADATIONS`` or None.
        seed: random seed of the degradation.
        pattern: of table and backdrop, one of ``PATTERNS`` or None.
        lighting: a key of ``LIGHTINGS``, or None for the usual light.
    """

    solids: tuple[Solid, ...]
    background: str
    light: Light
    degradation: str | None
    seed: int
    pattern: str | None = None
    lighting: str | None = None


def half_width(solid: Solid) -> float:
    """Return half of a solid's largest width in the image at its yaw."""
    width, _, depth = shape_of(solid.shape).extent
    return solid.scale * (width * math.cos(solid.yaw) + depth * abs(math.sin(solid.yaw)))


def half_depth(solid: Solid) -> float:
    """Return half of a solid's largest depth on the table at its yaw."""
    width, _, depth = shape_of(solid.shape).extent
    return solid.scale * (depth * math.cos(solid.yaw) + width * abs(math.sin(solid.yaw)))


def scene(seed: int, index: int, *, split: Split = "train", world: World = PLAIN) -> Scene:
    """Return the scene at ``index`` of the stream ``seed``; the same arguments give the same scene.

    In the ``held_out`` split exactly one solid has a combination of ``HELD_OUT``.
    """
    stream = np.random.SeedSequence([seed, index, list(_SPLITS).index(split)])
    rng = np.random.Generator(np.random.Philox(stream))
    # For what the plain world lacks, so that its streams do not change.
    extra = np.random.Generator(np.random.Philox(stream.spawn(1)[0]))
    kinds = [_choose(_SPLITS[split], rng)]
    several = rng.random()
    for _ in range((several < world.several_solids) + (several < world.three_solids)):
        # Solids differ in shape or colour, so that captions can distinguish them.
        taken = [kind[:2] for kind in kinds]
        kinds.append(_choose([kind for kind in _SEEN_COMBINATIONS if kind[:2] not in taken], rng))
    solids = [_solid(*kind, rng) for kind in kinds]
    if rng.random() < 0.5:
        solids.reverse()
    carried = len(solids) == 2 and any(solid.shape in CARRIERS for solid in solids)
    if len(solids) == 3:
        arrange = _in_a_row
    elif carried and extra.random() < world.stacked:
        arrange = _stacked
    elif len(solids) == 2 and rng.random() < world.in_depth:
        arrange = _in_depth
    else:
        arrange = _side_by_side
    lighting = _choose(tuple(LIGHTINGS), extra) if extra.random() < world.lit else None
    light = LIGHTINGS[lighting] if lighting is not None else USUAL_LIGHT
    return Scene(
        solids=arrange(solids, rng),
        background=_choose(tuple(COLORS), rng),
        light=Light(
            azimuth=_between(*light.azimuth, rng), elevation=_between(*light.elevation, rng), tint=light.tint
        ),
        degradation=_choose(tuple(DEGRADATIONS), rng) if rng.random() < world.degraded else None,
        seed=int(rng.random() * 2**32),
        pattern=_choose(PATTERNS, extra) if extra.random() < world.patterned else None,
        lighting=lighting,
    )


def rearranged(given: Scene, rng: np.random.Generator) -> Scene:
    """Draw another scene of the plain world with the same full caption.

    Positions, turns, light, and scales within their sizes are drawn anew; attributes, and the relation of two
    solids, stay.
    """
    solids = [
        replace(
            solid, scale=_between(*SIZES[solid.size], rng), depth=_between(-_DEPTH, _DEPTH, rng),
            yaw=_between(-shape_of(solid.shape).turn, shape_of(solid.shape).turn, rng),
        )
        for solid in given.solids
    ]  # fmt: skip
    if len(solids) == 1:
        placed = _side_by_side(solids, rng)
    else:
        wanted = relation(*given.solids)
        arrange = _in_depth if wanted in ("front", "behind") else _side_by_side
        placed = arrange(solids, rng)
        while relation(*placed) != wanted:
            placed = arrange(solids, rng)
    light = Light(
        azimuth=_between(*USUAL_LIGHT.azimuth, rng), elevation=_between(*USUAL_LIGHT.elevation, rng)
    )
    return replace(given, solids=placed, light=light)


def _solid(shape: str, color: str, material: str, rng: np.random.Generator) -> Solid:
    size = _choose(tuple(SIZES), rng)
    turn = shape_of(shape).turn
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
    """Return the position of the first of two solids relative to the second.

    Solids side by side are "left" or "right" of each other, whatever their depths. Solids that overlap in the
    image are "front" or "behind", or, one on the other, "above" or "below".
    """
    if first.lift != second.lift:
        return "above" if first.lift > second.lift else "below"
    if abs(first.x - second.x) >= half_width(first) + half_width(second):
        return "left" if first.x < second.x else "right"
    return "front" if first.depth < second.depth else "behind"


def _in_depth(solids: list[Solid], rng: np.random.Generator) -> tuple[Solid, ...]:
    """Place two solids one behind the other, shifted so that the one behind can be recognised."""
    widths = [2 * half_width(solid) for solid in solids]
    least = max(_MIN_DEPTH_GAP, sum(half_depth(solid) for solid in solids) + _GAP)
    apart = _between(least, 2 * _DEPTH, rng)
    front = _between(-_DEPTH, _DEPTH - apart, rng)
    shift = sum(widths) / 2 - _between(*_OVERLAP, rng) * min(widths)
    # Offsets from the first solid's middle; then the pair is placed within the frame.
    offsets = (0.0, shift if rng.random() < 0.5 else -shift)
    low = min(offset - width / 2 for offset, width in zip(offsets, widths, strict=True))
    high = max(offset + width / 2 for offset, width in zip(offsets, widths, strict=True))
    x = _between(-1 + MARGIN - low, 1 - MARGIN - high, rng)
    depths = (front, front + apart) if rng.random() < 0.5 else (front + apart, front)
    return tuple(
        replace(solid, x=x + offset, depth=depth)
        for solid, offset, depth in zip(solids, offsets, depths, strict=True)
    )


def _stacked(solids: list[Solid], rng: np.random.Generator) -> tuple[Solid, ...]:
    """Place a small solid on a large one that can carry it, keeping their order."""
    carrier = next(number for number, solid in enumerate(solids) if solid.shape in CARRIERS)
    below = _resized(solids[carrier], "large", rng)
    free = 1 - MARGIN - half_width(below)
    below = replace(below, x=_between(-free, free, rng))
    above = replace(
        _resized(solids[1 - carrier], "small", rng),
        x=below.x,
        depth=below.depth,
        lift=shape_of(below.shape).extent[1] * below.scale,
    )
    return (below, above) if carrier == 0 else (above, below)


def _in_a_row(solids: list[Solid], rng: np.random.Generator) -> tuple[Solid, ...]:
    """Place small solids side by side, ordered from left to right."""
    placed = _side_by_side([_resized(solid, "small", rng) for solid in solids], rng)
    return tuple(sorted(placed, key=lambda solid: solid.x))


def _resized(solid: Solid, size: str, rng: np.random.Generator) -> Solid:
    return replace(solid, size=size, scale=_between(*SIZES[size], rng))


def _side_by_side(solids: list[Solid], rng: np.random.Generator) -> tuple[Solid, ...]:
    """Place the solids side by side with random gaps, keeping their order."""
    widths = [2 * half_width(solid) for solid in solids]
    free = 2 - 2 * MARGIN - sum(widths) - _GAP * (len(solids) - 1)
    assert free >= 0, "the largest sizes must fit side by side"
    left_to_right = list(range(len(solids)))
    if rng.random() < 0.5:
        left_to_right.reverse()
    cuts = sorted(_between(0.0, free, rng) for _ in solids)
    placed = list(solids)
    edge = -1 + MARGIN
    for position, cut in zip(left_to_right, cuts, strict=True):
        placed[position] = replace(solids[position], x=edge + cut + widths[position] / 2)
        edge += widths[position] + _GAP
    return tuple(placed)


def _choose(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.random() * len(options))]


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * float(rng.random())
