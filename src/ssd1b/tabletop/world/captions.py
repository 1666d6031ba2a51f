"""Captions of scenes: a small grammar in which every sentence is true of its image.

Each choice in the grammar is one draw in [0, 1), and 0 is always the canonical choice, so the complete
canonical caption is the sentence in which every draw is 0.

A caption describes both the scene and the image: a red sphere in a monochrome image is called red and
monochrome. Some captions do not mention the degradation, as in real data, so a prompt without words on
quality may give a spoiled image, and a negative prompt has something to remove. Others mention only
degradations, including ones that the image does not have: negative prompts are written like that, and a model
understands them only if it was trained on such texts.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import numpy as np

from ssd1b.tabletop.world.degradations import DEGRADATIONS
from ssd1b.tabletop.world.scenes import (
    COLORS,
    LIGHTINGS,
    MATERIALS,
    PATTERNS,
    SIZES,
    USUAL_LIGHT,
    Light,
    Relation,
    Scene,
    Solid,
    relation,
)
from ssd1b.tabletop.world.shapes import SHAPES

Draw: TypeAlias = Callable[[], float]
T = TypeVar("T")

CANONICAL_SHARE = 0.5
"""Share of captions that are canonical and complete."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "large": ("large", "big"),
    "rubber": ("rubber", "matte"),
    "metal": ("metal", "metallic", "shiny"),
    "gray": ("gray", "grey"),
    "sphere": ("sphere", "ball"),
    "torus": ("torus", "donut"),
    "blurry": ("blurry", "out of focus"),
    "monochrome": ("monochrome", "grayscale"),
    "low res": ("low res", "pixelated"),
    "noisy": ("noisy", "grainy"),
}
"""Words for an attribute's value, the canonical one first. A value not listed here has no other word."""

RELATIONS: dict[Relation, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "front": ("in front of",),
    "behind": ("behind",),
    "above": ("on top of", "on"),
    "below": ("under", "below"),
}
_PLACES = ("on {} background", "against {} background", "on {} table")
_OPENINGS = ("{}", "a picture of {}")
_ORDERS = ("{things} {place}", "{place}, {things}")
_REMARKS = ("{sentence}, {remark}", "{remark}, {sentence}")

# Probabilities of an omission in captions that are not canonical.
_OMIT_ATTRIBUTE = 0.1
_OMIT_RELATION = 0.2

UNMENTIONED_SHARE = 0.15
"""Share of degraded images whose caption does not mention the degradation."""

FAULTS_ONLY_SHARE = 0.3
"""Share of degraded images whose caption consists of degradations only."""


def full_caption(scene: Scene) -> str:
    """Return the canonical, complete caption; scenes with the same attributes have the same one."""
    return _sentence(scene, lambda: 0.0)


def parse_caption(text: str) -> Scene | None:
    """Return a scene that a canonical, complete caption describes; None for any other text.

    This inverts ``full_caption`` for one or two solids on a plain background without degradation. Positions
    are arbitrary, but agree with the solids' relation.
    """
    match = _FULL_CAPTION.fullmatch(text)
    if match is None:
        return None
    said = match.groupdict()
    solids = [_parse_solid(said, "first"), *([_parse_solid(said, "second")] if said["second_shape"] else [])]
    if said["relation"]:
        x, depth, lift = _POSITIONS[said["relation"]]
        solids[0] = replace(solids[0], x=x, depth=depth, lift=lift)
    light = Light(azimuth=USUAL_LIGHT.azimuth[0], elevation=USUAL_LIGHT.elevation[0])
    return Scene(solids=tuple(solids), background=said["background"], light=light, degradation=None, seed=0)


def _parse_solid(said: Mapping[str, str], which: str) -> Solid:
    size = said[f"{which}_size"]
    return Solid(
        shape=said[f"{which}_shape"],
        color=said[f"{which}_color"],
        size=size,
        material=said[f"{which}_material"],
        scale=SIZES[size][0],
        yaw=0.0,
        x=0.0,
        depth=0.0,
    )


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return a true caption: with probability ``CANONICAL_SHARE`` the canonical one, else a variation.

    Variations may omit attributes. The caption of a degraded image may name only degradations, or none.
    """
    if scene.degradation is not None:
        drawn = rng.random()
        if drawn < FAULTS_ONLY_SHARE:
            return _faults(scene.degradation, rng)
        if drawn < FAULTS_ONLY_SHARE + UNMENTIONED_SHARE:
            scene = replace(scene, degradation=None)
    if rng.random() < CANONICAL_SHARE:
        return full_caption(scene)
    return _sentence(scene, rng.random)


def _faults(degradation: str, rng: np.random.Generator) -> str:
    """List the degradation among others that the image does not have, more often few than many."""
    others = [each for each in DEGRADATIONS if each != degradation]
    count = int(rng.random() ** 2 * (len(others) + 1))
    words = [degradation, *rng.choice(others, count, replace=False)]
    return ", ".join(_word(str(each), rng.random) for each in rng.permutation(words))


def _sentence(scene: Scene, draw: Draw) -> str:
    sentence = _pick(_OPENINGS, draw).format(_arrangement(scene.solids, draw))
    if _mentions(_OMIT_ATTRIBUTE, draw):
        pattern = [scene.pattern] if scene.pattern is not None and _mentions(_OMIT_ATTRIBUTE, draw) else []
        background = " ".join([*pattern, _word(scene.background, draw)])
        place = _pick(_PLACES, draw).format(_with_article(background))
        sentence = _pick(_ORDERS, draw).format(things=sentence, place=place)
    if scene.lighting is not None and _mentions(_OMIT_ATTRIBUTE, draw):
        sentence = f"{sentence}, {scene.lighting}"
    if scene.degradation is None:
        return sentence
    return _pick(_REMARKS, draw).format(sentence=sentence, remark=_word(scene.degradation, draw))


def _arrangement(solids: tuple[Solid, ...], draw: Draw) -> str:
    if len(solids) == 1:
        return _noun(solids[0], draw)
    if len(solids) == 3:
        first, second, third = (_noun(solid, draw) for solid in solids)
        order = " from left to right" if _mentions(_OMIT_RELATION, draw) else ""
        return f"{first}, {second} and {third}{order}"
    first, second = solids if draw() < 0.5 else reversed(solids)
    between = "and"
    if _mentions(_OMIT_RELATION, draw):
        between = _pick(RELATIONS[relation(first, second)], draw)
    return f"{_noun(first, draw)} {between} {_noun(second, draw)}"


def _noun(solid: Solid, draw: Draw) -> str:
    size = [_word(solid.size, draw)] if _mentions(_OMIT_ATTRIBUTE, draw) else []
    color, shape = _word(solid.color, draw), _word(solid.shape, draw)
    words = [*size, color, shape]
    if _mentions(_OMIT_ATTRIBUTE, draw):
        made_of = [*size, color, shape, "made of", solid.material]
        words = _pick(([*size, color, _word(solid.material, draw), shape], made_of), draw)
    return _with_article(" ".join(words))


def _word(value: str, draw: Draw) -> str:
    return _pick(SYNONYMS.get(value, (value,)), draw)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(options: Sequence[T], draw: Draw) -> T:
    return options[int(draw() * len(options))]


def _mentions(omitted: float, draw: Draw) -> bool:
    return draw() < 1 - omitted


def _vocabulary() -> tuple[str, ...]:
    values = (*SHAPES, *COLORS, *SIZES, *MATERIALS, *DEGRADATIONS, *PATTERNS, *LIGHTINGS)
    phrases = [word for value in values for word in SYNONYMS.get(value, (value,))]
    phrases += [phrase for relation in RELATIONS.values() for phrase in relation]
    phrases += ["from left to right"]
    phrases += [phrase.replace("{}", "") for phrase in (*_PLACES, *_OPENINGS)]
    phrases += ["a", "an", "and", "made of", ","]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


_POSITIONS = {
    RELATIONS["left"][0]: (-2.0, 0.0, 0.0),
    RELATIONS["right"][0]: (2.0, 0.0, 0.0),
    RELATIONS["front"][0]: (0.0, -1.0, 0.0),
    RELATIONS["behind"][0]: (0.0, 1.0, 0.0),
}
"""A position (x, depth, lift) of the first solid for each relation to a second one at the origin."""


def _full_caption_pattern() -> re.Pattern[str]:
    def one_of(name: str, words: Iterable[str]) -> str:
        return f"(?P<{name}>{'|'.join(map(re.escape, words))})"

    def noun(which: str) -> str:
        kinds = {"size": SIZES, "color": COLORS, "material": MATERIALS, "shape": SHAPES}
        return "an? " + " ".join(one_of(f"{which}_{name}", words) for name, words in kinds.items())

    second = f"(?: {one_of('relation', _POSITIONS)} {noun('second')})?"
    return re.compile(f"{noun('first')}{second} on an? {one_of('background', COLORS)} background")


_FULL_CAPTION = _full_caption_pattern()

VOCABULARY = _vocabulary()
"""Every word and punctuation mark of captions in any world."""
