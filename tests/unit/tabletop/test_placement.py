"""Whether solids are in their places: by number and distance, whatever they are."""

from dataclasses import replace

import numpy as np

from ssd1b.tabletop.judge.judge import Reading, Seen
from ssd1b.tabletop.judge.placement import NEAR, in_place
from ssd1b.tabletop.world.renderer import in_picture
from ssd1b.tabletop.world.scenes import Scene, Solid, scene


def seen(solid: Solid, right: float = 0.0) -> Seen:
    x, up = in_picture(solid)
    return Seen({}, {}, x=x + right, up=up, depth=solid.depth)


def reading(*solids: Seen) -> Reading:
    return Reading(
        solids=solids, background="red", degradation=None, chances={}, features=np.zeros(1, np.float32)
    )


def two_solids() -> Scene:
    scenes = (scene(0, index) for index in range(20))
    return next(each for each in scenes if len(each.solids) == 2)


def test_each_solid_must_be_near_its_place() -> None:
    both = two_solids()
    first, second = both.solids
    assert in_place(both, reading(seen(first), seen(second)))
    assert in_place(both, reading(seen(second), seen(first))), "in any order"
    assert in_place(both, reading(seen(first, 0.9 * NEAR), seen(second, -0.9 * NEAR)))
    assert not in_place(both, reading(seen(first, 1.1 * NEAR), seen(second)))


def test_the_number_must_be_right() -> None:
    both = two_solids()
    first, second = both.solids
    assert not in_place(both, reading(seen(first)))
    assert not in_place(both, reading())
    assert not in_place(both, reading(seen(first), seen(second), seen(first, 0.5)))
    assert in_place(replace(both, solids=(first,)), reading(seen(first)))
