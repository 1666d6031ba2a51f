"""Captions: the canonical one says everything, the others say less, and none says anything untrue."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rounds import rounds
from ssd1b.tabletop.world.captions import VOCABULARY, caption, full_caption, parse_caption
from ssd1b.tabletop.world.degradations import DEGRADATIONS
from ssd1b.tabletop.world.scenes import (
    COLORS,
    PLAIN,
    WORLDS,
    Scene,
    Solid,
    Split,
    half_width,
    relation,
    scene,
)

# The words of each value, written down here again: a synonym that changes its meaning must show.
MEANINGS = {
    "small": "small", "tiny": "small", "little": "small", "large": "large", "big": "large",
    "rubber": "rubber", "matte": "rubber", "metal": "metal", "metallic": "metal", "shiny": "metal",
    "sphere": "sphere", "ball": "sphere", "torus": "torus", "donut": "torus",
    "cube": "cube", "cone": "cone", "cylinder": "cylinder", "pyramid": "pyramid",
    "grey": "gray", **{color: color for color in COLORS},
}  # fmt: skip
REMARKS = {
    "blurry": "blurry", "out of focus": "blurry", "monochrome": "monochrome", "grayscale": "monochrome",
    "low quality": "low quality", "low res": "low res", "pixelated": "low res",
    "jpeg artifacts": "jpeg artifacts", "noisy": "noisy", "grainy": "noisy", "watermark": "watermark",
    "sketch": "sketch", "cropped": "cropped",
}  # fmt: skip
NOUN = re.compile(r"an? (?P<words>.+)")
SENTENCE = re.compile(
    r"(?:a picture of )?(?P<first>.+?)"
    r"(?: (?P<relation>(?:to the )?left of|(?:to the )?right of|in front of|behind|and) (?P<second>.+?))?"
    r"(?: (?:on|against) an? (?P<background>\w+) (?:background|table))?"
)
PLACE_FIRST = re.compile(r"((?:on|against) an? \w+ (?:background|table)), (.+)")


def attributes(noun: str) -> set[str]:
    match = NOUN.fullmatch(noun)
    assert match, noun
    return {MEANINGS[word] for word in match["words"].replace("made of ", "").split()}


def all_attributes(solid: Solid) -> set[str]:
    return {solid.size, solid.color, solid.material, solid.shape}


def check(text: str, shown: Scene) -> Counter[str]:
    """Read a caption, assert that each statement is true of the scene, and count what it leaves out."""
    omitted = Counter()
    parts = text.split(", ")
    remarks = [REMARKS[part] for part in parts if part in REMARKS]
    if len(remarks) == len(parts):
        assert shown.degradation in remarks and len(set(remarks)) == len(remarks)
        omitted["everything else"] += 1
        omitted["with others"] += len(remarks) > 1
        return omitted
    if shown.degradation is not None and not remarks:
        omitted["degradation"] += 1
    else:
        assert remarks == [shown.degradation] * (shown.degradation is not None)
    sentence = PLACE_FIRST.sub(r"\2 \1", ", ".join(part for part in parts if part not in REMARKS))
    match = SENTENCE.fullmatch(sentence)
    assert match, sentence
    said = [attributes(noun) for noun in (match["first"], match["second"]) if noun]
    assert len(said) == len(shown.solids)
    solids = list(shown.solids)
    if len(said) == 2:
        relation = match["relation"]
        if relation == "and":
            omitted["relation"] += 1
            in_order = all(words <= all_attributes(solid) for words, solid in zip(said, solids, strict=True))
            solids = solids if in_order else solids[::-1]
        else:
            across = "left" in relation or "right" in relation
            first_is_second = "right" in relation or relation == "behind"
            solids.sort(key=lambda solid: solid.x if across else solid.depth, reverse=first_is_second)
            near, far = sorted(solids, key=lambda solid: solid.depth)
            overlap = abs(near.x - far.x) < half_width(near) + half_width(far)
            assert overlap != across, "left and right are of what stands apart in the picture"
    for words, solid in zip(said, solids, strict=True):
        assert words <= all_attributes(solid)
        assert {solid.shape, solid.color} <= words
        omitted["size"] += solid.size not in words
        omitted["material"] += solid.material not in words
    if match["background"]:
        assert MEANINGS[match["background"]] == shown.background
    else:
        omitted["background"] += 1
    return omitted


@settings(derandomize=True, deadline=None, max_examples=rounds(150, 600))
@given(st.integers(0, 2**40), st.integers(0, 2**32), st.sampled_from(["train", "held_out"]))
def test_no_caption_is_untrue(index: int, seed: int, split: str) -> None:
    shown = scene(5, index, split=split)
    check(caption(shown, np.random.default_rng(seed)), shown)


def test_the_canonical_caption_says_everything_in_order() -> None:
    for index in range(500):
        shown = scene(5, index)
        assert check(full_caption(shown), shown).total() == 0
        first = shown.solids[0]
        opening = f"{first.size} {first.color} {first.material} {first.shape} "
        assert full_caption(shown).removeprefix("a ").startswith(opening)
        assert full_caption(shown).endswith(shown.degradation or "background")


EXAMPLES = {
    0: "a small red rubber sphere in front of a large orange metal sphere on a red background",
    6: "a large pink metal pyramid on a red background",
    7: "a large cyan rubber cylinder on an orange background, noisy",
    13: "a large brown rubber torus to the right of a large purple metal cube on a cyan background",
}


@pytest.mark.parametrize(("index", "text"), EXAMPLES.items())
def test_the_canonical_caption_reads(index: int, text: str) -> None:
    assert full_caption(scene(1, index)) == text


def test_half_of_the_captions_are_canonical_and_few_leave_something_out() -> None:
    rng = np.random.default_rng(1)
    canonical, omitted, solids = 0, Counter(), 0
    for index in range(2500):
        shown = scene(6, index)
        text = caption(shown, rng)
        canonical += text in (full_caption(shown), full_caption(replace(shown, degradation=None)))
        omitted += check(text, shown)
        solids += len(shown.solids)
    told = 2500 - omitted["everything else"]
    assert 0.47 < canonical / told < 0.54
    assert 0.035 < omitted["background"] / told < 0.065
    assert 0.035 < omitted["size"] / solids < 0.065
    assert 0.035 < omitted["material"] / solids < 0.065
    assert 0.05 < omitted["relation"] / 1500 < 0.15


def test_of_a_degradation_some_captions_are_silent_and_some_say_nothing_else() -> None:
    rng = np.random.default_rng(4)
    omitted: Counter[str] = Counter()
    for index in range(2500):
        shown = scene(6, index)
        omitted += check(caption(shown, rng), shown)
    degraded = 2500 * PLAIN.degraded
    assert 0.11 < omitted["degradation"] / degraded < 0.19
    assert 0.24 < omitted["everything else"] / degraded < 0.36
    assert 0.4 < omitted["with others"] / omitted["everything else"] < 0.85


def test_one_scene_is_put_in_many_words() -> None:
    rng = np.random.default_rng(2)
    shown = next(s for s in map(lambda index: scene(6, index), range(100)) if len(s.solids) == 2)
    assert len({caption(shown, rng) for _ in range(200)}) > 60


def test_the_vocabulary_is_just_what_captions_say() -> None:
    rng = np.random.default_rng(3)
    said = {
        word
        for index in range(3000)
        for word in caption(scene(8, index, world=WORLDS["rich"]), rng).replace(",", " ,").split()
    }
    assert said == set(VOCABULARY)


RICH_EXAMPLES = {
    1: "a large black metal sphere in front of a large blue metal cone on a striped orange background",
    4: "a small purple rubber torus, a small purple metal sphere and a small gray rubber cone "
    "from left to right on a checkered green background",
    6: "a large orange rubber cylinder under a small green metal cube on a pink background",
    8: "a large blue rubber pyramid behind a large black rubber pyramid on a dotted orange background, "
    "in warm light",
}


@pytest.mark.parametrize(("index", "text"), RICH_EXAMPLES.items())
def test_captions_of_the_rich_world_read(index: int, text: str) -> None:
    assert full_caption(scene(5, index, world=WORLDS["rich"])) == text


def test_every_degradation_has_its_word() -> None:
    assert set(REMARKS.values()) == set(DEGRADATIONS)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_full_caption_is_understood(split: Split) -> None:
    for index in range(400):
        shown = replace(scene(7, index, split=split), degradation=None)
        told = parse_caption(full_caption(shown))
        assert told is not None
        for name in ("shape", "color", "size", "material"):
            assert [getattr(each, name) for each in told.solids] == [
                getattr(each, name) for each in shown.solids
            ]
        assert told.background == shown.background
        if len(shown.solids) == 2:
            assert relation(*told.solids) == relation(*shown.solids)


@pytest.mark.parametrize(
    "text",
    [
        "a lighthouse",
        "a red sphere on a blue background",
        "a large red metal sphere",
        "a large red metal sphere on a blue background, blurry",
        "a large red metal sphere on a blue background ",
        "a large red metal sphere and a small red metal cube on a blue background",
    ],
)
def test_what_leaves_something_open_is_not(text: str) -> None:
    assert parse_caption(text) is None
