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

from ssd1b.tabletop.world.degradations import DEGRADATIONS
from ssd1b.tabletop.world.shapes import SHAPES

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

PATTERNS = ("checkered", "striped", "dotted")
"""What a table and its backdrop may be covered with."""

CARRIERS = ("cube", "cylinder")
"""Shapes that another solid can stand on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lighting:
    """A light that captions have words for.

    Attributes:
        azimuth: in radians to the right of the viewer, the least and the greatest; elevation: likewise.
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
    """How often a stream of scenes shows what; a share of 0 leaves a thing and its words out.

    Attributes:
        several_solids: share of scenes with more than one solid; three_solids: of all scenes, with three,
            which are small and stand in a row.
        in_depth: of two solids, the share that stand one behind the other; else they stand side by side.
        stacked: of two solids of which one can carry the other, the share in which it does.
        degraded: share of pictures that are spoiled.
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
"""Worlds by name. The plain one, which the miniature that comes along knows, is small enough to be learned on
two cores."""

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
        x: its middle, to the right; depth: away from the viewer; lift: of its underside above the table.
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
    """Where the light stands, in radians: azimuth to the right of the viewer, elevation above the table.

    Its tint is of factors on red, green and blue in linear light.
    """

    azimuth: float
    elevation: float
    tint: tuple[float, float, float] = USUAL_LIGHT.tint


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything a picture shows.

    Attributes:
        solids: one to three, in the order in which the caption names them; three from left to right.
        background: the colour of table and backdrop, a key of ``COLORS``.
        degradation: a key of ``DEGRADATIONS`` or None.
        seed: of the degradation's randomness.
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
    """Half of the width that a solid, turned as it is, can take in the picture."""
    width, _, depth = SHAPES[solid.shape].extent
    return solid.scale * (width * math.cos(solid.yaw) + depth * abs(math.sin(solid.yaw)))


def half_depth(solid: Solid) -> float:
    """Half of the depth that a solid, turned as it is, can take on the table."""
    width, _, depth = SHAPES[solid.shape].extent
    return solid.scale * (depth * math.cos(solid.yaw) + width * abs(math.sin(solid.yaw)))


def scene(seed: int, index: int, *, split: Split = "train", world: World = PLAIN) -> Scene:
    """Draw the scene at ``index`` of the stream ``seed``: the same arguments give the same scene.

    In the ``held_out`` split exactly one solid has a combination of ``HELD_OUT``.
    """
    stream = np.random.SeedSequence([seed, index, list(_SPLITS).index(split)])
    rng = np.random.Generator(np.random.Philox(stream))
    # Of what the plain world leaves out: its streams stay what they are.
    extra = np.random.Generator(np.random.Philox(stream.spawn(1)[0]))
    kinds = [_choose(_SPLITS[split], rng)]
    several = rng.random()
    for _ in range((several < world.several_solids) + (several < world.three_solids)):
        # Solids differ in shape or colour, so that words can tell them apart.
        taken = [kind[:2] for kind in kinds]
        kinds.append(_choose([kind for kind in _KNOWN if kind[:2] not in taken], rng))
    solids = [_solid(*kind, rng) for kind in kinds]
    if rng.random() < 0.5:
        solids.reverse()
    if len(solids) == 3:
        arranged = _in_a_row
    elif len(solids) == 2 and _can_be_stacked(solids) and extra.random() < world.stacked:
        arranged = _one_on_the_other
    elif len(solids) == 2 and rng.random() < world.in_depth:
        arranged = _one_behind_the_other
    else:
        arranged = _side_by_side
    lighting = _choose(tuple(LIGHTINGS), extra) if extra.random() < world.lit else None
    light = LIGHTINGS[lighting] if lighting is not None else USUAL_LIGHT
    return Scene(
        solids=arranged(solids, rng),
        background=_choose(tuple(COLORS), rng),
        light=Light(
            azimuth=_between(*light.azimuth, rng), elevation=_between(*light.elevation, rng), tint=light.tint
        ),
        degradation=_choose(tuple(DEGRADATIONS), rng) if rng.random() < world.degraded else None,
        seed=int(rng.random() * 2**32),
        pattern=_choose(PATTERNS, extra) if extra.random() < world.patterned else None,
        lighting=lighting,
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
    the picture stand "front" or "behind", or one on the other, "above" or "below".
    """
    if first.lift != second.lift:
        return "above" if first.lift > second.lift else "below"
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


def _can_be_stacked(solids: list[Solid]) -> bool:
    return any(solid.shape in CARRIERS for solid in solids)


def _one_on_the_other(solids: list[Solid], rng: np.random.Generator) -> tuple[Solid, ...]:
    """Stand a small solid on a large one that can carry it; their order stays as it is."""
    carrier = next(number for number, solid in enumerate(solids) if solid.shape in CARRIERS)
    below = _sized(solids[carrier], "large", rng)
    free = 1 - _MARGIN - half_width(below)
    below = replace(below, x=_between(-free, free, rng))
    above = replace(
        _sized(solids[1 - carrier], "small", rng),
        x=below.x,
        depth=below.depth,
        lift=SHAPES[below.shape].extent[1] * below.scale,
    )
    return (below, above) if carrier == 0 else (above, below)


def _in_a_row(solids: list[Solid], rng: np.random.Generator) -> tuple[Solid, ...]:
    """Stand solids beside each other, small ones, named from left to right."""
    placed = _side_by_side([_sized(solid, "small", rng) for solid in solids], rng)
    return tuple(sorted(placed, key=lambda solid: solid.x))


def _sized(solid: Solid, size: str, rng: np.random.Generator) -> Solid:
    return replace(solid, size=size, scale=_between(*SIZES[size], rng))


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
