"""Whether solids are where a picture of them says, for networks that follow a picture."""

import math

from ssd1b.tabletop.judge.examination import pair_by_position
from ssd1b.tabletop.judge.judge import Reading
from ssd1b.tabletop.world.renderer import in_picture
from ssd1b.tabletop.world.scenes import Scene

NEAR = 0.125
"""Largest distance in the image's plane, whose side is 2, of a solid that is in its place: a sixteenth of the
side, one of the judge's cells."""


def in_place(scene: Scene, reading: Reading) -> bool:
    """Return whether an image has as many solids as a scene, each near a solid's place there.

    Solids are paired by position, whatever their shapes and colours.
    """
    pairs = pair_by_position(scene.solids, reading.solids)
    return len(reading.solids) == len(scene.solids) and all(
        seen is not None and math.dist(in_picture(solid), (seen.x, seen.up)) <= NEAR for solid, seen in pairs
    )
