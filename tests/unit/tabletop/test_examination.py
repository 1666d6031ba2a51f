"""The judge's examination: wrong answers count as wrong, whoever gives them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ssd1b.tabletop.judge import examination, plots
from ssd1b.tabletop.judge.examination import ANSWERS, Examination, examine, pair_by_position
from ssd1b.tabletop.judge.judge import (
    PICTURE_ANSWERS,
    SOLID_ANSWERS,
    Judge,
    Reading,
    Seen,
)
from ssd1b.tabletop.world.scenes import Scene, Solid

COUNT = 60


def seen(solid: Solid, **wrong: str) -> Seen:
    answers = {name: getattr(solid, name) for name in SOLID_ANSWERS} | wrong
    return Seen(answers, dict.fromkeys(SOLID_ANSWERS, 0.75), solid.x, 0.0, solid.depth)


class Informed(Judge):
    """A judge that is told the scenes, and changes what it is told."""

    def __init__(self, change: Callable[[Reading], Reading] = lambda reading: reading) -> None:
        super().__init__()
        self.change = change
        self.scenes: Sequence[Scene] = ()

    def look(self, scenes: Sequence[Scene]) -> NDArray[np.uint8]:
        self.scenes = scenes
        return np.zeros((len(scenes), 1, 1, 3), np.uint8)

    def read(self, pictures: NDArray[np.uint8], batch_size: int = 64) -> list[Reading]:
        return [
            self.change(
                Reading(
                    solids=tuple(seen(solid) for solid in reversed(scene.solids)),
                    background=scene.background,
                    degradation=scene.degradation,
                    chances=dict.fromkeys(PICTURE_ANSWERS, 0.75),
                    features=np.zeros(1, np.float32),
                )
            )
            for scene in self.scenes
        ]


def examined(change: Callable[[Reading], Reading] = lambda reading: reading) -> Examination:
    judge = Informed(change)
    return examine(judge, COUNT, judge.look)


def test_one_who_knows_is_always_right() -> None:
    found = examined()
    assert {estimate.mean for estimate in found.accuracy().values()} == {1.0}
    for question, answers in ANSWERS.items():
        confusion = found.confusion(question)
        assert confusion.shape == (len(answers), len(answers) + 1)
        np.testing.assert_array_equal(confusion[:, :-1], np.diag(confusion.diagonal()))
        assert confusion[:, -1].sum() == 0


def test_a_wrong_answer_is_counted_where_it_belongs() -> None:
    def called_cones(reading: Reading) -> Reading:
        solids = tuple(each._replace(answers=each.answers | {"shape": "cone"}) for each in reading.solids)
        return replace(reading, solids=solids)

    found = examined(called_cones)
    accuracy = found.accuracy()
    assert 0 < accuracy["shape"].mean < 0.5
    assert accuracy["color"].mean == accuracy["background"].mean == accuracy["relation"].mean == 1
    confusion = found.confusion("shape")
    column = ANSWERS["shape"].index("cone")
    assert confusion[:, column].sum() == confusion.sum() == accuracy["shape"].size


def test_a_solid_that_is_not_seen_is_wrong_in_everything() -> None:
    found = examined(lambda reading: replace(reading, solids=()))
    accuracy = found.accuracy()
    assert all(accuracy[name].mean == 0 for name in (*SOLID_ANSWERS, "number", "relation"))
    assert found.confusion("shape")[:, -1].sum() == accuracy["shape"].size
    assert found.calibration("shape") == []


def test_of_colourless_and_cropped_pictures_only_what_they_show_is_asked() -> None:
    found = examined()
    sizes = {name: estimate.size for name, estimate in found.accuracy().items()}
    assert sizes["degradation"] == COUNT > sizes["background"]
    assert sizes["shape"] > sizes["color"]
    assert sizes["number"] < COUNT


def test_none_is_spoiled_where_none_is_to_be() -> None:
    judge = Informed()
    found = examine(judge, COUNT, judge.look, world=examination.CLEAN_WORLD)
    assert {verdict.truth for verdict in found.verdicts if verdict.question == "degradation"} == {"none"}
    assert found.accuracy()["background"].size == COUNT


def test_solids_are_paired_by_place_even_if_everything_else_is_wrong() -> None:
    scene = next(
        each
        for each in (examination.scene(1, index) for index in range(100))
        if len(each.solids) == 2 and abs(each.solids[0].x - each.solids[1].x) > 0.6
    )
    first, second = scene.solids
    liar = [seen(second, shape=first.shape, color=first.color), seen(first, shape=second.shape)]
    assert [(solid, other.x) for solid, other in pair_by_position(scene.solids, liar) if other] == [
        (first, first.x),
        (second, second.x),
    ]
    (_, one), (_, other) = pair_by_position(scene.solids, [seen(second)])
    assert one is None and other is not None


def test_calibration_tells_the_sure_from_the_right() -> None:
    (point,) = examined().calibration("background", bins=1)
    assert point == (pytest.approx(0.75), 1.0, examined().accuracy()["background"].size)


def test_plots_are_pictures() -> None:
    pytest.importorskip("matplotlib")
    found = examined()
    for png in (plots.confusion_plot(found), plots.calibration_plot({"renders": found})):
        assert png.startswith(b"\x89PNG")
