"""Shapes: rays meet them where a plain inside test, walked in small steps, says they do."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from ssd1b.tabletop.world.shapes import SHAPES, hit, normals

INSIDE: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "sphere": lambda x, y, z: x**2 + (y - 1) ** 2 + z**2 < 1,
    "cube": lambda x, y, z: (abs(x) < 0.75) & (abs(z) < 0.75) & (0 < y) & (y < 1.5),
    "cone": lambda x, y, z: (np.hypot(x, z) < 0.9 * (1 - y / 2.05)) & (0 < y),
    "cylinder": lambda x, y, z: (np.hypot(x, z) < 0.72) & (0 < y) & (y < 1.75),
    "pyramid": lambda x, y, z: (np.maximum(abs(x), abs(z)) < 0.77 * (1 - y / 1.75)) & (0 < y),
    "torus": lambda x, y, z: np.hypot(np.hypot(x, y - 0.98) - 0.68, z) < 0.3,
}
STEP = 0.01


def rays(azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """A bundle of parallel rays towards the middle of a solid, seen from a direction."""
    towards = -np.array(
        [
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
            -math.cos(elevation) * math.cos(azimuth),
        ]
    )
    across = np.array([math.cos(azimuth), 0, math.sin(azimuth)])
    up = np.cross(towards, across)
    u, v = np.meshgrid(np.linspace(-1.5, 1.5, 41) + 0.003, np.linspace(-1.5, 1.5, 41) + 0.007)
    origins = np.array([0, 0.9, 0])[:, None] - 3 * towards[:, None] + across[:, None] * u.ravel()
    return (origins + up[:, None] * v.ravel()).astype(np.float32), towards.astype(np.float32)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.38), (0.5, 0.38), (-0.9, 0.85), (-1.6, 0.75)])
@pytest.mark.parametrize("name", SHAPES)
def test_rays_meet_the_surface(name: str, azimuth: float, elevation: float) -> None:
    origins, towards = rays(azimuth, elevation)
    found = hit(SHAPES[name], origins[:, None], towards[:, None, None])[0]
    walked = np.full(found.shape, np.inf)
    for distance in np.arange(0, 6, STEP)[::-1]:
        walked[INSIDE[name](*(origins + distance * towards[:, None]))] = distance
    # Rays that graze an edge may be in for less than a step, or within the torus's tolerance.
    assert np.mean(np.isfinite(found) != np.isfinite(walked)) < 0.02
    both = np.isfinite(found) & np.isfinite(walked)
    assert both.sum() > 150
    late = walked[both] - found[both]
    assert np.quantile(abs(late - STEP / 2), 0.9) < STEP


@pytest.mark.parametrize("name", SHAPES)
def test_normals_leave_the_solid(name: str) -> None:
    origins, towards = rays(0.3, 0.5)
    found = hit(SHAPES[name], origins[:, None], towards[:, None, None])[0]
    met = np.isfinite(found)
    points = origins[:, met] + found[met] * towards[:, None]
    facing = normals(SHAPES[name], points)
    np.testing.assert_allclose(np.linalg.norm(facing, axis=0), 1, atol=1e-5)
    assert np.mean(INSIDE[name](*(points - 0.05 * facing))) > 0.97
    assert not np.any(INSIDE[name](*(points + 0.05 * facing)))
    assert np.mean((towards[:, None] * facing).sum(axis=0) < 0.05) > 0.97


@pytest.mark.parametrize("name", SHAPES)
def test_extent_is_the_least_box(name: str) -> None:
    wide, tall, deep = SHAPES[name].extent
    x, y, z = np.meshgrid(np.linspace(-1.2, 1.2, 97), np.linspace(-0.1, 2.3, 97), np.linspace(-1.2, 1.2, 97))
    inside = INSIDE[name](x, y, z)
    reach = [abs(x[inside]).max(), y[inside].max(), abs(z[inside]).max()]
    np.testing.assert_allclose(reach, [wide, tall, deep], atol=0.04)
    assert y[inside].min() == pytest.approx(0, abs=0.03)


def test_a_ray_that_starts_past_a_solid_meets_it_behind_itself() -> None:
    origin, towards = np.float32([0, 1, 5]), np.float32([0, 0, 1])
    assert hit(SHAPES["sphere"], origin[:, None, None], towards[:, None, None])[0, 0] == pytest.approx(-6)
