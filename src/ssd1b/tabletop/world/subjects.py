"""Subjects that no stream of scenes has, for fine-tuning: a new shape and a new material."""

from collections.abc import Mapping
from dataclasses import replace

from ssd1b.tabletop.world.scenes import MARGIN, PLAIN, Scene, Solid, half_width, scene
from ssd1b.tabletop.world.shapes import shape_of

SUBJECTS: Mapping[str, str] = {"octahedron": "shape", "banded": "material"}
"""Each subject, and the attribute of a solid whose value it is. No shipped model was trained on one."""

_ALONE = replace(PLAIN, several_solids=0.0, degraded=0.0)


def subject_scene(subject: str, seed: int, index: int) -> Scene:
    """Return a scene with one solid that has the subject, and all else from a stream of scenes.

    Args:
        subject: a key of ``SUBJECTS``.
        seed: of the stream; trainings use 0 to 5.
        index: within the stream.
    """
    plain = scene(seed, index, world=_ALONE)
    (solid,) = plain.solids
    return replace(plain, solids=(_with_subject(solid, subject),))


def _with_subject(solid: Solid, subject: str) -> Solid:
    if SUBJECTS[subject] == "material":
        return replace(solid, material=subject)
    turn, known = shape_of(subject).turn, shape_of(solid.shape).turn
    # A solid of revolution has no yaw in the stream: its position says which way the new one is turned.
    yaw = solid.yaw / known * turn if known else solid.x * turn
    turned = replace(solid, shape=subject, yaw=yaw)
    free = 1 - MARGIN - half_width(turned)
    return replace(turned, x=min(max(solid.x, -free), free))
