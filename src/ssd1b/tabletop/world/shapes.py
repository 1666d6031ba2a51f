"""The solids as data: their bounds, intersections with rays, and normals.

Coordinates are local to the solid: the origin in the middle of its footprint, y up, unit size. Rays have
origins ``[3, 1, points]`` and unit directions ``[3, rays, 1]``. Projection and light are parallel, so
whatever depends on only one of the two is computed once.

Arrays only see ``+ - * /``, comparisons and ``sqrt``. IEEE 754 defines their rounding, so an image does not
depend on the machine or on numpy's vector width.
"""

import functools
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating]
Vector: TypeAlias = tuple[float, float, float]

BEVEL = 0.06
"""Width over which the normals of neighbouring faces blend, so that edges catch the light."""

_RING_STEPS = 12
_RING_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadric:
    """The points where ``sum(weights * (p - center)**2) <= bound``."""

    weights: Vector
    center: Vector
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The points where ``normal . p <= bound``, with a normal of length 1."""

    normal: Vector
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A torus standing on the table, its axis along z."""

    radius: float
    thickness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A solid of unit size: the intersection of its quadric and its planes, or the ring inscribed in it.

    Attributes:
        extent: half of its width, its height, half of its depth.
        footprint: half of the width and depth of what darkens the table under it.
        turn: largest yaw in radians that changes the view; 0 for a solid of revolution.
        quadric: curved bound.
        planes: flat bounds.
        ring: the torus inside of these bounds.
    """

    extent: Vector
    footprint: tuple[float, float]
    turn: float = 0.0
    quadric: Quadric | None = None
    planes: tuple[Plane, ...] = ()
    ring: Ring | None = None


def _above(height: float) -> Plane:
    return Plane(normal=(0.0, -1.0, 0.0), bound=-height)


def _below(height: float) -> Plane:
    return Plane(normal=(0.0, 1.0, 0.0), bound=height)


def _sphere(radius: float) -> Shape:
    return Shape(
        extent=(radius, 2 * radius, radius),
        footprint=(0.6 * radius, 0.6 * radius),
        quadric=Quadric(weights=(1.0, 1.0, 1.0), center=(0.0, radius, 0.0), bound=radius**2),
    )


def _cylinder(radius: float, height: float) -> Shape:
    return Shape(
        extent=(radius, height, radius),
        footprint=(radius, radius),
        quadric=Quadric(weights=(1.0, 0.0, 1.0), center=(0.0, 0.0, 0.0), bound=radius**2),
        planes=(_above(0.0), _below(height)),
    )


def _cone(radius: float, height: float) -> Shape:
    return Shape(
        extent=(radius, height, radius),
        footprint=(radius, radius),
        quadric=Quadric(weights=(1.0, -((radius / height) ** 2), 1.0), center=(0.0, height, 0.0), bound=0.0),
        planes=(_above(0.0), _below(height)),
    )


def _tapered_box(half: float, height: float, taper: float) -> Shape:
    """Make a box on a square base whose sides lean inwards by ``taper`` over its height."""
    length = math.hypot(height, taper)
    across, up, bound = height / length, taper / length, half * height / length
    sides = tuple(
        Plane(normal=normal, bound=bound)
        for sign in (-1.0, 1.0)
        for normal in ((sign * across, up, 0.0), (0.0, up, sign * across))
    )
    return Shape(
        extent=(half, height, half),
        footprint=(1.05 * half, 1.05 * half),
        turn=math.pi / 4,
        planes=(_above(0.0), _below(height), *sides),
    )


def _octahedron(half: float, height: float) -> Shape:
    """Make two pyramids that share a square base and stand on a tip."""
    middle = height / 2
    length = math.hypot(half, middle)
    across, up = middle / length, half / length
    sides = tuple(
        Plane(normal=normal, bound=across * half + (up * middle if rising else -up * middle))
        for sign in (-1.0, 1.0)
        for rising in (False, True)
        for normal in (
            (sign * across, up if rising else -up, 0.0),
            (0.0, up if rising else -up, sign * across),
        )
    )
    return Shape(
        extent=(half, height, half),
        footprint=(0.5 * half, 0.5 * half),
        turn=math.pi / 4,
        planes=sides,
    )


def _torus(radius: float, thickness: float) -> Shape:
    outer = radius + thickness
    return Shape(
        extent=(outer, 2 * outer, thickness),
        footprint=(0.45 * outer, thickness),
        turn=0.65,
        quadric=Quadric(weights=(1.0, 1.0, 0.0), center=(0.0, outer, 0.0), bound=outer**2),
        planes=(
            Plane(normal=(0.0, 0.0, 1.0), bound=thickness),
            Plane(normal=(0.0, 0.0, -1.0), bound=thickness),
        ),
        ring=Ring(radius=radius, thickness=thickness),
    )


SHAPES: dict[str, Shape] = {
    "sphere": _sphere(radius=1.0),
    "cube": _tapered_box(half=0.75, height=1.50, taper=0.0),
    "cone": _cone(radius=0.9, height=2.05),
    "cylinder": _cylinder(radius=0.72, height=1.75),
    "pyramid": _tapered_box(half=0.77, height=1.75, taper=0.77),
    "torus": _torus(radius=0.68, thickness=0.3),
}
"""The shapes of the streams of scenes."""

NEW_SHAPES: dict[str, Shape] = {"octahedron": _octahedron(half=0.78, height=1.85)}
"""Shapes that no stream has; see ``subjects.py``."""


def shape_of(name: str) -> Shape:
    """Return a shape of a stream, or a new one."""
    return SHAPES.get(name) or NEW_SHAPES[name]


def dot(a: Array, b: Array) -> Array:
    """Return the scalar product over the first axis, in a fixed order of additions."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(vectors: Array) -> Array:
    """Normalize vectors along the first axis."""
    return vectors / np.sqrt(dot(vectors, vectors))


def column(vector: Vector, like: Array) -> Array:
    """Reshape a vector to ``[3, 1, ...]`` for broadcasting over ``like``."""
    return np.asarray(vector, np.float32).reshape(3, *[1] * (like.ndim - 1))


def hit(shape: Shape, origins: Array, directions: Array) -> Array:
    """Return the distances at which rays enter a shape, ``[rays, points]``; infinity for a miss.

    The distance is negative if the ray starts behind the solid.
    """
    enter, leave = _cross_planes(shape.planes, origins, directions)
    if shape.quadric is not None:
        first, last = _cross_quadric(shape.quadric, origins, directions)
        enter, leave = np.maximum(enter, first), np.minimum(leave, last)
    if shape.ring is not None:
        enter = _trace_ring(shape.ring, origins, directions, enter, leave)
    return np.where(enter < leave, enter, np.inf)


def _cross_quadric(quadric: Quadric, origins: Array, directions: Array) -> tuple[Array, Array]:
    """Solve the quadratic for both crossings.

    The leading coefficient is positive for every ray of the camera and the light: the cone is steeper than
    any of them, so no ray crosses both of its sheets.
    """
    weights = column(quadric.weights, origins)
    offset = origins - column(quadric.center, origins)
    a = dot(weights * directions, directions)
    b = dot(weights * directions, offset)
    c = dot(weights * offset, offset) - quadric.bound
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    # Without a real root the crossings coincide, and the interval is empty.
    return (-b - root) / a, (-b + root) / a


def _cross_planes(planes: tuple[Plane, ...], origins: Array, directions: Array) -> tuple[Array, Array]:
    enter = np.full((directions.shape[1], 1), -np.inf, np.float32)
    leave = -enter
    for plane in planes:
        slope = _along(plane.normal, directions)
        slope = np.where(np.abs(slope) < 1e-6, 1e-6, slope)
        distance = (plane.bound - _along(plane.normal, origins)) / slope
        if slope.min() < 0:
            enter = np.maximum(enter, np.where(slope < 0, distance, -np.inf))
        if slope.max() > 0:
            leave = np.minimum(leave, np.where(slope > 0, distance, np.inf))
    return enter, leave


def _along(normal: Vector, vectors: Array) -> Array:
    """Return the scalar product with a normal, skipping its zeros."""
    terms = [n * v for n, v in zip(normal, vectors, strict=True) if n]
    return functools.reduce(np.add, terms)


def _trace_ring(ring: Ring, origins: Array, directions: Array, enter: Array, leave: Array) -> Array:
    """Return the distances from ``enter`` to the ring by sphere tracing; infinity for a miss."""
    ray, point = np.nonzero(enter < leave)
    start = (origins - column((0.0, ring.radius + ring.thickness, 0.0), origins))[:, 0, point]
    direction, distance = directions[:, ray, 0], enter[ray, point]
    for _ in range(_RING_STEPS):
        distance += _ring_distance(ring, start + distance * direction)
    found = _ring_distance(ring, start + distance * direction) < _RING_TOLERANCE
    result = np.full(enter.shape, np.inf, np.float32)
    result[ray[found], point[found]] = distance[found]
    return result


def _ring_distance(ring: Ring, p: Array) -> Array:
    """Return the signed distance to a ring around the origin."""
    outward = np.sqrt(p[0] * p[0] + p[1] * p[1]) - ring.radius
    return np.sqrt(outward * outward + p[2] * p[2]) - ring.thickness


def normals(shape: Shape, p: Array) -> Array:
    """Return outward unit normals at surface points ``[3, points]``, blended across edges."""
    if shape.ring is not None:
        return _ring_normals(shape.ring, p)
    total = np.zeros_like(p)
    for plane in shape.planes:
        normal = column(plane.normal, p)
        depth = dot(normal, p) - plane.bound
        total += np.maximum(depth + BEVEL, 0) * normal
    if shape.quadric is not None:
        offset = p - column(shape.quadric.center, p)
        weighted = column(shape.quadric.weights, p) * offset
        steepness = np.sqrt(dot(weighted, weighted)) + 1e-6
        depth = (dot(weighted, offset) - shape.quadric.bound) / (2 * steepness)
        total += np.maximum(depth + BEVEL, 0) / steepness * weighted
    return unit(total)


def _ring_normals(ring: Ring, p: Array) -> Array:
    x, y, z = p[0], p[1] - (ring.radius + ring.thickness), p[2]
    shrink = 1 - ring.radius / np.sqrt(x * x + y * y)
    return unit(np.stack((x * shrink, y * shrink, z)))
