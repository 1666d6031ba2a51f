"""The renderer: parallel rays, one soft light, exact shadows; milliseconds on a CPU.

The table is shaded once per pixel. Each solid is rendered inside its bounding box, with 2 x 2 rays per pixel,
and composited over the table by its coverage. Shading is in linear light; the tone curve is a square root,
which is close to sRGB's and, unlike a power, rounded alike on every machine (see shapes.py).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssd1b.tabletop.world.degradations import degrade
from ssd1b.tabletop.world.scenes import COLORS, Light, Scene, Solid, half_depth, half_width
from ssd1b.tabletop.world.shapes import Array, Vector, column, dot, hit, normals, shape_of, unit

TILT = 0.38
"""Downward angle of the camera in radians."""

_RISE = -0.25  # of the table's middle above the image's middle
_SAMPLES = 2  # rays per pixel and axis, on solids
_FAR = 4.0  # the camera's distance from the middle of the table
_CELL = 0.25  # side of a cell of a background's pattern
_DARKER = 0.45  # darkening of the pattern's dark cells
_BAND = 0.6  # height of a band of a banded solid and the gap above it, at unit size
_WHITE, _BLACK = 0.88, 0.02  # linear light that a band reflects; on a white solid bands are black
_LIGHTS = 8  # sample points on the light's disc
_LIGHT_RADIUS = 0.11  # of the disc, at distance 1

_SIN, _COS = math.sin(TILT), math.cos(TILT)
_VIEW = (0.0, -_SIN, _COS)  # the direction of all camera rays


@dataclass(frozen=True, slots=True)
class _Frame:
    """The mapping between pixels and world units; the square [-1, 1] lies in the image's middle."""

    width: int
    height: int

    @property
    def scale(self) -> float:
        """Pixels per world unit."""
        return min(self.width, self.height) / 2

    def columns(self, left: int, right: int, samples: int = 1) -> Array:
        """Return the world units right of the image's middle, for the pixels in [left, right)."""
        steps = np.arange(left * samples, right * samples, dtype=np.float32)
        return (steps + 0.5) / (samples * self.scale) - self.width / 2 / self.scale

    def rows(self, top: int, bottom: int, samples: int = 1) -> Array:
        """Return the world units above the image's middle, for the pixels in [top, bottom)."""
        steps = np.arange(top * samples, bottom * samples, dtype=np.float32)
        return self.height / 2 / self.scale - (steps + 0.5) / (samples * self.scale)

    def box(self, left: float, right: float, low: float, high: float) -> tuple[int, int, int, int]:
        """Return the pixels (left, right, top, bottom) that cover a rectangle, clipped to the frame."""
        across = [
            math.floor(left * self.scale + self.width / 2) - 1,
            math.ceil(right * self.scale + self.width / 2) + 1,
        ]
        down = [
            math.floor(self.height / 2 - high * self.scale) - 1,
            math.ceil(self.height / 2 - low * self.scale) + 1,
        ]
        x0, x1 = (min(max(value, 0), self.width) for value in across)
        y0, y1 = (min(max(value, 0), self.height) for value in down)
        return x0, x1, y0, y1


def render(scene: Scene, size: int | tuple[int, int] = 128) -> NDArray[np.uint8]:
    """Render a scene.

    Args:
        scene: the scene.
        size: side of the image, or its width and height, in pixels. An image that is not square shows more of
            the table on both sides of the square.

    Returns:
        RGB, ``[height, width, 3]``.
    """
    width, height = (size, size) if isinstance(size, int) else size
    frame = _Frame(width, height)
    lights = _light_directions(scene.light)
    picture = _table(scene, lights, frame)
    for solid in sorted(scene.solids, key=lambda solid: (-solid.depth, solid.lift)):
        _render_solid(solid, scene, lights, frame, picture)
    picture *= np.asarray(scene.light.tint, np.float32)[:, None, None]
    pixels = (np.sqrt(np.minimum(picture, 1)) * 255 + 0.5).astype(np.uint8)
    return degrade(np.ascontiguousarray(pixels.transpose(1, 2, 0)), scene.degradation, scene.seed)


def render_batch(scenes: Iterable[Scene], size: int | tuple[int, int] = 128) -> NDArray[np.uint8]:
    """Render scenes: ``[batch, height, width, 3]``."""
    return np.stack([render(scene, size) for scene in scenes])


def in_picture(solid: Solid) -> tuple[float, float]:
    """Project a solid's middle: world units right of and above the image's middle."""
    half_height = shape_of(solid.shape).extent[1] * solid.scale / 2
    return solid.x, solid.depth * _SIN + _RISE + (solid.lift + half_height) * _COS


def _linear(color: str) -> Array:
    """Return a named colour in linear light, ``[3]``."""
    return (np.asarray(COLORS[color], np.float32) / 255) ** 2


def _table_color(scene: Scene) -> Array:
    """Return the table's colour in linear light, slightly paler than a solid of the same colour."""
    color = _linear(scene.background)
    return color + 0.022 * (1 - color)


def _towards_light(light: Light) -> Vector:
    """Return the unit vector towards the middle of the light's disc."""
    flat = math.cos(light.elevation)
    return flat * math.sin(light.azimuth), math.sin(light.elevation), -flat * math.cos(light.azimuth)


def _light_directions(light: Light) -> Array:
    """Return unit vectors towards points on a spiral in the light's disc, ``[3, lights, 1]``."""
    middle = np.array(_towards_light(light))
    across = np.array((math.cos(light.azimuth), 0.0, math.sin(light.azimuth)))
    up = np.array(_towards_light(replace(light, elevation=light.elevation + math.pi / 2)))
    turns = [i * math.pi * (3 - math.sqrt(5)) for i in range(_LIGHTS)]
    radii = [_LIGHT_RADIUS * math.sqrt((i + 0.5) / _LIGHTS) for i in range(_LIGHTS)]
    points = [
        middle + radius * (math.cos(turn) * across + math.sin(turn) * up)
        for radius, turn in zip(radii, turns, strict=True)
    ]
    return unit(np.asarray(points, np.float32).T[:, :, None])


def _to_solid(solid: Solid, points: Array) -> Array:
    """Transform world points to a solid's local frame of unit size."""
    offset = points - column((solid.x, solid.lift, solid.depth), points)
    return _turn(offset, -solid.yaw) * (1 / solid.scale)


def _to_world(solid: Solid, local: Array) -> Array:
    """Transform points from a solid's local frame to the world."""
    return _turn(local * solid.scale, solid.yaw) + column((solid.x, solid.lift, solid.depth), local)


def _turn(vectors: Array, angle: float) -> Array:
    """Rotate vectors about the vertical."""
    if angle == 0:
        return vectors
    cos, sin = math.cos(angle), math.sin(angle)
    x, y, z = vectors
    return np.stack((cos * x - sin * z, y, sin * x + cos * z))


def _light_reaching(points: Array, solid: Solid, lights: Array) -> Array:
    """Return the share of the light's disc that is visible past a solid from points ``[3, points]``."""
    distance = hit(shape_of(solid.shape), _to_solid(solid, points)[:, None], _turn(lights, -solid.yaw))
    # Under a solid the distance is zero up to rounding.
    blocked = (distance > -1e-3) & (distance < np.inf)
    return 1 - blocked.sum(axis=0, dtype=np.float32) / len(distance)


def _table(scene: Scene, lights: Array, frame: _Frame) -> Array:
    """Render the table with all shadows, in linear light ``[3, height, width]``."""
    u, v = frame.columns(0, frame.width), frame.rows(0, frame.height)[:, None]
    reaching = np.ones((frame.height, frame.width), np.float32)
    openness = np.ones_like(reaching)
    for solid in scene.solids:
        _shade_table(solid, lights, frame, reaching, openness)
    # The table bends up into the backdrop, which faces the light less.
    bend = np.clip((v - 0.25) / 0.6, 0, 1)
    bend = bend * bend * (3 - 2 * bend)
    falloff = 1 - 0.10 * (u * u + v * v)
    light = falloff * (1 - 0.22 * bend) * (0.40 * openness + 0.55 * reaching)
    return _table_color(scene)[:, None, None] * light * _pattern(scene.pattern, u, v)


def _pattern(name: str | None, u: Array, v: Array) -> Array:
    """Return factors on the table's colour, ``[height, width]``.

    The pattern lies in the image's plane: on the table's, it would be finer than latents can hold.
    """
    if name is None:
        return np.ones(np.broadcast_shapes(u.shape, v.shape), np.float32)
    # Triangle waves between -1 and 1 with a period of two cells.
    across, up = (4 * np.abs(x / _CELL / 2 - np.floor(x / _CELL / 2) - 0.5) - 1 for x in (u, v))
    if name == "checkered":
        inside = across * up
    elif name == "striped":
        inside = np.broadcast_to(across, np.broadcast_shapes(u.shape, v.shape))
    else:
        inside = 0.45 - across * across - up * up
    return 1 - _DARKER * np.clip(0.5 + _CELL * 16 * inside, 0, 1).astype(np.float32)


def _shade_table(solid: Solid, lights: Array, frame: _Frame, reaching: Array, openness: Array) -> None:
    """Darken the table, in place, by the light and the sky that a solid hides."""
    left, right, near, far = _shadow_box(solid, lights)
    x0, x1, y0, y1 = frame.box(left, right, near * _SIN + _RISE, far * _SIN + _RISE)
    x, z = np.broadcast_arrays(frame.columns(x0, x1), (frame.rows(y0, y1)[:, None] - _RISE) / _SIN)
    points = np.stack((x.ravel(), np.zeros(x.size, np.float32), z.ravel()))
    reaching[y0:y1, x0:x1] *= _blurred(_light_reaching(points, solid, lights).reshape(x.shape))
    if solid.lift:
        return  # the solid below already darkens the table around it
    local = _to_solid(solid, points)
    wide, deep = shape_of(solid.shape).footprint
    a, b = local[0] / wide, local[2] / deep
    distance = a * a + b * b
    openness[y0:y1, x0:x1] *= (1 - 0.7 / (1 + distance * distance)).reshape(x.shape)


def _blurred(values: Array) -> Array:
    """Blur with the kernel (1, 2, 1) along both axes, leaving the outermost pixels."""
    values = values.copy()
    values[1:-1] = (values[:-2] + 2 * values[1:-1] + values[2:]) / 4
    values[:, 1:-1] = (values[:, :-2] + 2 * values[:, 1:-1] + values[:, 2:]) / 4
    return values


def _shadow_box(solid: Solid, lights: Array) -> tuple[float, float, float, float]:
    """Return the part of the table (left, right, near, far) under a solid and its shadow."""
    height = solid.lift + shape_of(solid.shape).extent[1] * solid.scale
    wide, deep = half_width(solid), half_depth(solid)
    # Shadows of the top under each light, and the radius of the ambient darkening.
    away = -lights[:, :, 0] / lights[1, :, 0] * height
    around = 0.5 * solid.scale
    return (
        solid.x - wide + min(-around, float(away[0].min())),
        solid.x + wide + max(around, float(away[0].max())),
        solid.depth - deep + min(-around, float(away[2].min())),
        solid.depth + deep + max(around, float(away[2].max())),
    )


def _render_solid(solid: Solid, scene: Scene, lights: Array, frame: _Frame, picture: Array) -> None:
    """Render a solid over the image, in place."""
    shape = shape_of(solid.shape)
    floor = _RISE + solid.lift * _COS
    low = (solid.depth - half_depth(solid)) * _SIN + floor
    high = (solid.depth + half_depth(solid)) * _SIN + floor + shape.extent[1] * solid.scale * _COS
    x0, x1, y0, y1 = frame.box(solid.x - half_width(solid), solid.x + half_width(solid), low, high)
    u, v = np.broadcast_arrays(frame.columns(x0, x1, _SAMPLES), frame.rows(y0, y1, _SAMPLES)[:, None])
    up = v.ravel() - _RISE
    view = column(_VIEW, up[None])
    start = np.stack((u.ravel(), _COS * up, _SIN * up)) - _FAR * view
    local_start, local_view = _to_solid(solid, start), _turn(view, -solid.yaw)
    distance = hit(shape, local_start[:, None], local_view[:, :, None])[0]
    (seen,) = np.nonzero(distance < np.inf)
    local = local_start[:, seen] + distance[seen] * local_view
    points, facing = _to_world(solid, local), _turn(normals(shape, local), solid.yaw)
    reaching = _light_past_others(solid, scene, points, facing, lights)
    color = _shade(solid, scene, points, facing, reaching)

    layer = np.zeros((4, u.size), np.float32)
    layer[:3, seen] = np.minimum(color, 1)
    layer[3, seen] = 1
    layer = layer.reshape(4, y1 - y0, _SAMPLES, x1 - x0, _SAMPLES)
    layer = (layer[:, :, 0, :, 0] + layer[:, :, 0, :, 1] + layer[:, :, 1, :, 0] + layer[:, :, 1, :, 1]) / 4
    area = picture[:, y0:y1, x0:x1]
    area *= 1 - layer[3]
    area += layer[:3]


def _light_past_others(solid: Solid, scene: Scene, points: Array, facing: Array, lights: Array) -> Array:
    """Return the share of the light that reaches a solid's points past the other solids."""
    reaching = np.ones(points.shape[1], np.float32)
    for other in scene.solids:
        if other is not solid:
            left, right, near, far = _shadow_box(other, lights)
            x, _, z = points
            inside = (x > left) & (x < right) & (z > near) & (z < far)
            (inside,) = np.nonzero(inside & (dot(facing, column(_towards_light(scene.light), facing)) > 0))
            reaching[inside] *= _light_reaching(points[:, inside], other, lights)
    return reaching


def _shade(solid: Solid, scene: Scene, points: Array, facing: Array, reaching: Array) -> Array:
    """Return the light that the surface reflects towards the viewer, linear ``[3, points]``."""
    albedo, table = _linear(solid.color)[:, None], _table_color(scene)[:, None]
    view, light = column(_VIEW, facing), column(_towards_light(scene.light), facing)
    lit = np.maximum(dot(facing, light), 0) * reaching
    sky = (1 + facing[1]) / 2
    # Near the table a surface sees less of the sky, and the table it sees instead lies in the solid's shadow.
    height = np.minimum((points[1] - solid.lift) / (0.8 * solid.scale), 1)
    openness = 0.55 + 0.45 * height
    ambient = openness * (0.42 * sky + 0.25 * table * (1 - sky))
    if solid.material == "banded":
        band = _BLACK if solid.color == "white" else _WHITE
        albedo = albedo + (band - albedo) * _bands((points[1] - solid.lift) / solid.scale)
    if solid.material != "metal":
        glint = _power(np.maximum(dot(facing, unit(light - view)), 0), 3)
        return albedo * (ambient + 0.78 * lit) + 0.035 * glint * reaching
    # Metal mirrors the room: the table below, a bright ceiling, two tall windows. Reflections depend on a
    # point's position, so that flat faces have a gradient, too, and only a spot of the light.
    middle = column((solid.x, solid.lift + solid.scale, solid.depth), points)
    bent = unit(facing + (0.35 / solid.scale) * (points - middle))
    mirrored = view - 2 * dot(bent, view) * bent
    aside = mirrored[0] / np.sqrt(mirrored[0] * mirrored[0] + mirrored[2] * mirrored[2] + 1e-6)
    windows = _bump(aside, -0.55, 0.35) + 0.5 * _bump(aside, 0.7, 0.25)
    windows *= _bump(mirrored[1], -0.35, 0.5)
    room = 0.25 + 0.75 * _smooth(mirrored[1], 0.1, 0.8) + 0.7 * windows
    room = room * openness + 0.15 * table * _smooth(-mirrored[1], 0.0, 0.2)
    diffuse = 0.48 * ambient + 0.36 * lit
    glint = _power(np.maximum(dot(bent, unit(light - view)), 0), 6)
    polish = 0.9 * glint * reaching + 0.06 * windows
    return albedo * (diffuse + 0.75 * room) + polish


def _bands(height: Array) -> Array:
    """Return 1 in the bands and 0 between them, with soft edges, by the height on a solid of unit size."""
    wave = 4 * np.abs(height / _BAND - np.floor(height / _BAND) - 0.5) - 1
    return np.clip(0.5 - _BAND * 12 * wave, 0, 1).astype(np.float32)


def _power(x: Array, doublings: int) -> Array:
    """Compute ``x ** 2**doublings`` by squaring."""
    for _ in range(doublings):
        x = x * x
    return x


def _bump(x: Array, center: float, width: float) -> Array:
    """Fall smoothly from 1 at ``center`` to 0 at a distance of ``width``."""
    t = np.maximum(1 - ((x - center) / width) ** 2, 0)
    return t * t


def _smooth(x: Array, low: float, high: float) -> Array:
    """Step smoothly from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
