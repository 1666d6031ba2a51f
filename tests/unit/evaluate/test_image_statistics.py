"""How a picture looks: each measure on pictures of which the answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.evaluate.image_statistics import STATISTICS, image_statistics

GREY = np.full((8, 10, 3), 128, np.uint8)


def filled(*color: int) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (8, 10, 3))


def test_a_grey_picture_has_nothing_of_anything() -> None:
    assert image_statistics(GREY) == pytest.approx(dict.fromkeys(STATISTICS, 0.0), abs=1e-4)


def test_black_and_white_is_clipped_sharp_and_full_of_contrast_but_not_colourful() -> None:
    board = np.where(np.indices((8, 10)).sum(axis=0)[..., None] % 2, 255, 0).repeat(3, axis=2)
    found = image_statistics(board.astype(np.uint8))
    assert found["contrast"] == pytest.approx(127.5)
    # Each pixel's four neighbours are all its opposite: 4 x 255.
    assert found["sharpness"] == pytest.approx(1020, rel=1e-5)
    assert found["clipping"] == 1.0
    assert found["saturation"] == found["colourfulness"] == pytest.approx(0, abs=1e-3)


def test_colourfulness_is_that_of_the_paper() -> None:
    # One colour: no spread, and the mean opponents of pure red are (255, 127.5).
    assert image_statistics(filled(255, 0, 0))["colourfulness"] == pytest.approx(
        0.3 * np.hypot(255, 127.5), rel=1e-5
    )
    halves = filled(255, 0, 0).copy()
    halves[:, 5:] = (0, 0, 255)
    spread = np.hypot(127.5, (127.5 + 255) / 2)
    mean = np.hypot(127.5, (127.5 - 255) / 2)
    assert image_statistics(halves)["colourfulness"] == pytest.approx(spread + 0.3 * mean, rel=1e-5)


def test_saturation_is_that_of_hsv() -> None:
    assert image_statistics(filled(200, 100, 150))["saturation"] == pytest.approx(0.5)
    assert image_statistics(filled(0, 0, 0))["saturation"] == 0


def test_one_channel_at_its_end_clips_a_pixel() -> None:
    picture = GREY.copy()
    picture[0, 0] = (128, 255, 128)
    picture[1, 1] = (0, 128, 128)
    assert image_statistics(picture)["clipping"] == pytest.approx(2 / 80)


@given(st.integers(0, 2**32 - 1))
def test_every_measure_is_finite_and_not_negative(seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    found = image_statistics(picture)
    assert tuple(found) == STATISTICS
    assert all(np.isfinite(value) and value >= 0 for value in found.values())
