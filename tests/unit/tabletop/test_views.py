"""Views: crops and sizes come as often as said, and the numbers told to the UNet are those of the picture."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import scene
from ssd1b.tabletop.world.views import CUT, ENLARGED, SIZE, View, photograph, view

PLAIN = replace(scene(3, 1), degradation=None)


def kind(each: View) -> str:
    if each == View():
        return "whole"
    return "cut" if max(each.original_height, each.original_width) > SIZE else "enlarged"


def test_a_stream_can_be_entered_anywhere() -> None:
    assert [view(1, index) for index in (9, 4)] == [view(1, 9), view(1, 4)]
    assert len({view(1, index) for index in range(200)}) > 30


def test_kinds_come_as_often_as_said_and_crops_stay_inside() -> None:
    views = [view(2, index) for index in range(4000)]
    shares = Counter(map(kind, views))
    assert shares["cut"] / 4000 == pytest.approx(CUT, abs=0.02)
    assert shares["enlarged"] / 4000 == pytest.approx(ENLARGED, abs=0.02)
    for each in views:
        longer = max(each.original_height, each.original_width, SIZE) - SIZE
        assert 0 <= each.crop_top + each.crop_left <= longer
        assert min(each.crop_top, each.crop_left) == 0
    cut = [each for each in views if kind(each) == "cut"]
    assert {each.original_width > SIZE for each in cut} == {True, False}


def test_the_numbers_are_in_sdxls_order() -> None:
    shown = View(original_height=1, original_width=2, crop_top=3, crop_left=4)
    assert shown.time_ids == (1, 2, 3, 4, SIZE, SIZE)


def test_the_plain_view_is_the_render() -> None:
    assert np.array_equal(photograph(PLAIN, View()), render(PLAIN, SIZE))


@pytest.mark.parametrize("axis", ["width", "height"])
def test_a_crop_is_the_part_of_the_longer_original_that_its_numbers_say(axis: str) -> None:
    names = {"width": ("original_width", "crop_left"), "height": ("original_height", "crop_top")}[axis]
    shown = photograph(PLAIN, View(**dict(zip(names, (150, 7), strict=True))))
    whole = render(PLAIN, (150, SIZE) if axis == "width" else (SIZE, 150))
    expected = whole[:, 7 : 7 + SIZE] if axis == "width" else whole[7 : 7 + SIZE]
    assert np.array_equal(shown, expected)


def test_a_small_original_is_enlarged_and_softer() -> None:
    small = photograph(PLAIN, View(original_height=48, original_width=48))
    assert small.shape == (SIZE, SIZE, 3)
    sharpness = [np.abs(np.diff(picture.astype(int), axis=1)).max() for picture in (small, render(PLAIN))]
    assert sharpness[0] < 0.8 * sharpness[1]
    back = Image.fromarray(small).resize((48, 48), Image.Resampling.BOX)
    assert np.abs(np.asarray(back, int) - render(PLAIN, 48)).mean() < 4


def test_a_degradation_spoils_the_picture_that_was_taken() -> None:
    view_of = View(original_width=150, crop_left=20)
    noisy = photograph(replace(PLAIN, degradation="noisy"), view_of).astype(int)
    assert 5 < np.abs(noisy - photograph(PLAIN, view_of)).mean() < 40
