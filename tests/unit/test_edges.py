"""Edges: the rules of OpenCV's detector, by an independent and slower reading of them."""

import math

import numpy as np
import pytest

from ssd1b.edges import canny


def slow(picture: np.ndarray, low: int, high: int) -> np.ndarray:
    """Canny's detector pixel by pixel, with angles from arctangents."""
    height, width, _ = picture.shape
    levels = np.pad(picture.astype(int), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across, down = np.zeros((height, width), int), np.zeros((height, width), int)
    size = np.zeros((height + 2, width + 2), int)
    for y in range(height):
        for x in range(width):
            box = levels[y : y + 3, x : x + 3]
            gradients = []
            for channel in range(3):
                c = box[:, :, channel]
                dx = (c[0, 2] + 2 * c[1, 2] + c[2, 2]) - (c[0, 0] + 2 * c[1, 0] + c[2, 0])
                dy = (c[2, 0] + 2 * c[2, 1] + c[2, 2]) - (c[0, 0] + 2 * c[0, 1] + c[0, 2])
                gradients.append((abs(dx) + abs(dy), dx, dy))
            size[y + 1, x + 1], across[y, x], down[y, x] = max(gradients, key=lambda each: each[0])
    state = np.zeros((height, width), int)
    for y in range(height):
        for x in range(width):
            here = size[y + 1, x + 1]
            if here <= low:
                continue
            dx, dy = across[y, x], down[y, x]
            angle = math.degrees(math.atan2(abs(dy), abs(dx)))
            if angle < 22.5:
                keeps = here > size[y + 1, x] and here >= size[y + 1, x + 2]
            elif angle > 67.5:
                keeps = here > size[y, x + 1] and here >= size[y + 2, x + 1]
            else:
                side = 1 if (dx < 0) == (dy < 0) else -1
                keeps = here > size[y, x + 1 - side] and here > size[y + 2, x + 1 + side]
            state[y, x] = 0 if not keeps else 2 if here > high else 1
    waiting = [*zip(*np.nonzero(state == 2), strict=True)]
    while waiting:
        y, x = waiting.pop()
        for b in range(max(y - 1, 0), min(y + 2, height)):
            for a in range(max(x - 1, 0), min(x + 2, width)):
                if state[b, a] == 1:
                    state[b, a] = 2
                    waiting.append((b, a))
    return np.where(state == 2, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(24, 31), (3, 5), (1, 1)])
def test_the_rules(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + y * b + c) * 100 + 128 for a, b, c in rng.normal(0, 0.4, (3, 3))]
    picture = np.clip(np.stack(waves, axis=2) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(
        np.uint8
    )
    found = canny(picture, 60, 150)
    assert found.dtype == np.uint8 and np.array_equal(found, slow(picture, 60, 150))
    assert size != (24, 31) or 0 < found.astype(bool).mean() < 0.5


def test_a_square_has_an_outline_of_one_pixel() -> None:
    picture = np.full((20, 20, 3), 30, np.uint8)
    picture[5:15, 5:15] = 200
    found = canny(picture)
    assert 30 <= (found > 0).sum() <= 40
    assert not found[8:12, 8:12].any() and not found[:3].any()


def test_a_colour_of_the_same_brightness_is_an_edge() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8, 0], picture[:, 8:, 2] = 150, 150
    assert canny(picture).any()


def test_weak_edges_count_only_where_they_continue_strong_ones() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, 20:] = np.linspace(80, 20, 40).astype(np.uint8)[:, None, None]
    picture[2:, :4] = 30  # a weak edge on its own
    found = canny(picture, 100, 200) > 0
    assert found[5, 19:21].any() and found[25, 19:21].any()
    assert not found[:, :10].any()
    assert not canny(np.zeros((8, 8, 3), np.uint8)).any()
