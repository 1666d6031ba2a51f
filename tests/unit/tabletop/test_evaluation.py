"""Scores: a picture is right where the judge reads what the caption says, and only there."""

from dataclasses import replace

import numpy as np
import pytest

from ssd1b.tabletop.judge.evaluation import cases, score
from ssd1b.tabletop.judge.judge import PICTURE_ANSWERS, SOLID_ANSWERS, Reading, Seen
from ssd1b.tabletop.world.renderer import in_picture
from ssd1b.tabletop.world.scenes import HELD_OUT, WORLDS, Scene, relation, scene

CASES = cases(60)
ONE = next(case.scene for case in CASES if len(case.scene.solids) == 1)
SIDE = next(c.scene for c in CASES if len(c.scene.solids) == 2 and relation(*c.scene.solids) == "left")
RICH = (scene(3, index, world=WORLDS["rich"]) for index in range(200))
STACKED = next(each for each in RICH if len(each.solids) == 2 and relation(*each.solids) == "above")
DEEP = next(c.scene for c in CASES if len(c.scene.solids) == 2 and relation(*c.scene.solids) == "front")


def read(scene: Scene, **changes: str) -> Reading:
    """What a perfect judge reads off the scene; ``changes`` are to the first solid's answers."""
    solids = [
        Seen(
            {name: getattr(solid, name) for name in SOLID_ANSWERS},
            dict.fromkeys(SOLID_ANSWERS, 1.0),
            x=solid.x,
            up=in_picture(solid)[1],
            depth=solid.depth,
        )
        for solid in scene.solids
    ]
    solids[0] = solids[0]._replace(answers=solids[0].answers | changes)
    return Reading(
        solids=tuple(reversed(solids)),
        background=scene.background,
        degradation=None,
        chances=dict.fromkeys(PICTURE_ANSWERS, 1.0),
        features=np.zeros(2, np.float32),
    )


@pytest.mark.parametrize("scene", [ONE, SIDE, DEEP, STACKED])
def test_a_picture_of_the_scene_is_right(scene: Scene) -> None:
    given = score(scene, read(scene)).values
    assert all(value == 1 for value in given.values() if not np.isnan(value))
    assert np.isnan(given["relation"]) == (len(scene.solids) == 1)


def other(name: str, value: str) -> str:
    return next(answer for answer in SOLID_ANSWERS[name] if answer != value)


@pytest.mark.parametrize("name", SOLID_ANSWERS)
def test_one_wrong_attribute_of_two_solids_is_half_wrong(name: str) -> None:
    wrong = other(name, getattr(SIDE.solids[0], name))
    given = score(SIDE, read(SIDE, **{name: wrong})).values
    assert given[name] == 0.5 and given["right"] == 0 and given["relation"] == 1
    assert all(given[rest] == 1 for rest in SOLID_ANSWERS if rest != name)


@pytest.mark.parametrize("scene", [SIDE, DEEP, STACKED])
def test_solids_that_changed_places_have_only_the_relation_wrong(scene: Scene) -> None:
    first, second = scene.solids
    swapped = replace(
        scene,
        solids=(
            replace(first, x=second.x, depth=second.depth, lift=second.lift),
            replace(second, x=first.x, depth=first.depth, lift=first.lift),
        ),
    )
    given = score(scene, read(swapped))
    assert given.relation == 0 and given.right == 0
    assert given.solids == dict.fromkeys(SOLID_ANSWERS, 1.0)


def test_a_solid_too_many_and_one_too_few_are_wrong() -> None:
    single, double = read(ONE), read(SIDE)
    many = score(ONE, replace(single, solids=single.solids * 2))
    assert (many.number, many.right) == (0, 0) and many.solids["color"] == 1
    few = score(SIDE, replace(double, solids=double.solids[:1]))
    assert (few.number, few.relation, few.right) == (0, 0, 0) and few.solids["color"] == 0.5
    none = score(ONE, replace(single, solids=()))
    assert none.solids == dict.fromkeys(SOLID_ANSWERS, 0.0)


def test_background_and_degradation_count() -> None:
    wrong = next(color for color in SOLID_ANSWERS["color"] if color != ONE.background)
    given = score(ONE, replace(read(ONE), background=wrong, degradation="blurry"))
    assert (given.background, given.clean, given.right) == (0, 0, 0)


def test_half_of_the_cases_show_what_no_training_did() -> None:
    new = [any((s.shape, s.color, s.material) in HELD_OUT for s in case.scene.solids) for case in CASES]
    assert np.mean(new) == 0.5
    assert [case.split == "held_out" for case in CASES] == new
    assert all(case.scene.degradation is None for case in CASES)


def test_seeds_multiply_the_cases_caption_by_caption() -> None:
    twice = cases(3, 2)
    assert [case.seed for case in twice] == [*range(6)], "each has noise of its own"
    assert [case.caption for case in twice[::2]] == [case.caption for case in cases(3)]
