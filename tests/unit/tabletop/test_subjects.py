"""Subjects: one solid that no stream shows, whole in the image, with a true caption."""

from dataclasses import replace

import numpy as np
import pytest

from ssd1b.tabletop.world.captions import full_caption, parse_caption
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import MARGIN, MATERIALS, NEW_MATERIALS, half_width
from ssd1b.tabletop.world.shapes import NEW_SHAPES, SHAPES
from ssd1b.tabletop.world.subjects import SUBJECTS, subject_scene


def test_every_new_shape_and_material_is_a_subject() -> None:
    assert set(SUBJECTS) == {*NEW_SHAPES, *NEW_MATERIALS}
    assert not set(SUBJECTS) & {*SHAPES, *MATERIALS}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_scenes_have_one_solid_within_the_frame(subject: str) -> None:
    for index in range(300):
        scene = subject_scene(subject, 9, index)
        (solid,) = scene.solids
        assert getattr(solid, SUBJECTS[subject]) == subject
        assert abs(solid.x) + half_width(solid) <= 1 - MARGIN + 1e-9
        assert scene.degradation is None
        assert f" {subject}" in full_caption(scene)
        assert parse_caption(full_caption(scene)) is None


def test_an_octahedron_stands_on_its_tip() -> None:
    """Narrow at the floor and at the top, widest in the middle, and symmetrical about its middle."""
    shape = NEW_SHAPES["octahedron"]
    half, height, _ = shape.extent
    corners = [(half, height / 2, half), (0.0, height, 0.0), (0.0, 0.0, 0.0), (half, height / 2, 0.0)]
    for corner in corners:  # on the surface: no plane cuts it off, and at least one goes through it
        distances = [np.dot(plane.normal, corner) - plane.bound for plane in shape.planes]
        assert max(distances) == pytest.approx(0, abs=1e-6)
    outside = (half, height * 0.8, 0.0)
    assert max(np.dot(plane.normal, outside) - plane.bound for plane in shape.planes) > 0.1


def test_bands_are_seen_on_every_color() -> None:
    for index in range(40):
        scene = subject_scene("banded", 3, index)
        (solid,) = scene.solids
        banded = render(scene).astype(int)
        plain = render(replace(scene, solids=(replace(solid, material="rubber"),))).astype(int)
        changed = np.abs(banded - plain).max(axis=2) > 40
        assert changed.sum() > 25, full_caption(scene)
