"""Captions change at random as documented, and only as documented."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.training.data.captions import Variation, lines_of, variants, varied, with_trigger

TAGS = ["sks", "a", "b", "c", "d"]
tags = st.lists(st.text("abc ", max_size=3), max_size=8)


@given(tags, st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.integers(0, 99))
def test_the_first_tags_stay_and_the_others_are_a_part_of_the_others(
    given_tags: list[str], keep: int, dropout: float, shuffle: bool, seed: int
) -> None:
    caption = ",".join(given_tags)
    clean = [each.strip() for each in given_tags if each.strip()]
    found = varied(caption, Variation(shuffle, keep, dropout), np.random.default_rng(seed))
    if not clean:
        assert found == caption
        return
    left = found.split(", ")
    assert left[:keep] == clean[:keep]
    remaining = sorted(clean[keep:])
    for each in left[keep:]:
        remaining.remove(each)
    if dropout == 0:
        assert not remaining
    if dropout == 1:
        assert left == (clean[:keep] or clean[:1])
    if not shuffle and dropout == 0:
        assert left == clean


def test_every_order_and_every_tag_is_drawn() -> None:
    rng = np.random.default_rng(0)
    orders = [varied("x, a, b, c", Variation(True, 1, 0.0), rng) for _ in range(300)]
    assert {each[:4] for each in orders} == {"x, a", "x, b", "x, c"} and len({*orders}) == 6
    left = [varied("x, a, b, c", Variation(False, 1, 0.25), rng).split(", ") for _ in range(400)]
    for tag in "abc":
        assert 0.65 < sum(tag in each for each in left) / 400 < 0.85
    assert all(each[0] == "x" for each in left)


def test_variants_depend_on_the_caption_alone() -> None:
    how = Variation(True, 1, 0.0)
    caption = ", ".join(TAGS)
    first = variants(caption, how, 8)
    assert variants(caption, how, 8) == first == variants(caption, how, 12)[:8]
    assert len({*first}) > 4
    assert variants("sks, a, b, c, e", how, 8) != first


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog", "sks, a dog"),
        ("a sks dog", "a sks dog"),
        ("asks a dog", "sks, asks a dog"),
        ("SKS dog", "sks, SKS dog"),
    ],
)
def test_a_trigger_stands_in_front_once(caption: str, expected: str) -> None:
    assert with_trigger(caption, "sks") == expected
    assert with_trigger(expected, "sks") == expected
    assert with_trigger(caption, None) == caption
    assert with_trigger("a (b", "(x)") == "(x), a (b"


def test_lines() -> None:
    assert lines_of(["a cat\n\n a dog \r\nb"]) == ["a cat", " a dog ", "b"]
