"""Says what a scene shows: a small grammar, every sentence of which is true of its picture.

Each choice in the grammar is one draw in [0, 1), and 0 is always the canonical choice, so the complete
canonical caption is the sentence in which every draw is 0.

A caption speaks of the things in the scene and of the picture taken of them: a red sphere in a monochrome
picture is called red and monochrome. Of a degradation it is sometimes silent, as captions in the wild are. So
a prompt that does not speak of quality may get a spoiled picture, and a negative prompt has something to do.
Sometimes it speaks of nothing else, and lists other degradations, too, that the picture might have had: as
negative prompts are written, which a model can only understand if it has met such texts.
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

CANONICAL = 0.5
"""The share of captions that are canonical and complete."""

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
"""Words for an attribute's value, the canonical one first; a value not listed is its only word."""

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

# Of the captions that are not canonical, the share that leaves a thing unsaid.
_OMIT_ATTRIBUTE = 0.1
_OMIT_RELATION = 0.2

UNSAID = 0.15
"""The share of degraded pictures of whose degradation the caption is silent."""

NOTHING_ELSE = 0.3
"""The share of degraded pictures of which the caption says only what may have gone wrong."""


def full_caption(scene: Scene) -> str:
    """The canonical caption, which says everything: the same for every scene with these attributes."""
    return _sentence(scene, lambda: 0.0)


def understood(text: str) -> Scene | None:
    """The scene that a canonical, complete caption speaks of; None for any other text.

    Where its solids stand says no more than their relation does. The inverse of ``full_caption`` as far as
    one or two solids on a plain background, not spoiled, go.
    """
    match = _FULL.fullmatch(text)
    if match is None:
        return None
    said = match.groupdict()
    solids = [_named(said, "first"), *([_named(said, "second")] if said["second_shape"] else [])]
    if said["relation"]:
        x, depth, lift = _STANDS[said["relation"]]
        solids[0] = replace(solids[0], x=x, depth=depth, lift=lift)
    light = Light(azimuth=USUAL_LIGHT.azimuth[0], elevation=USUAL_LIGHT.elevation[0])
    return Scene(solids=tuple(solids), background=said["background"], light=light, degradation=None, seed=0)


def _named(said: Mapping[str, str], which: str) -> Solid:
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
    """A true caption: half of the time the canonical one, else in other words, which may say less.

    Of a degraded picture it may say only what went wrong, or nothing of it.
    """
    if scene.degradation is not None:
        drawn = rng.random()
        if drawn < NOTHING_ELSE:
            return _faults(scene.degradation, rng)
        if drawn < NOTHING_ELSE + UNSAID:
            scene = replace(scene, degradation=None)
    if rng.random() < CANONICAL:
        return full_caption(scene)
    return _sentence(scene, rng.random)


def _faults(degradation: str, rng: np.random.Generator) -> str:
    """A degradation among others that the picture might have had, more often few than many."""
    others = [each for each in DEGRADATIONS if each != degradation]
    count = int(rng.random() ** 2 * (len(others) + 1))
    words = [degradation, *rng.choice(others, count, replace=False)]
    return ", ".join(_word(str(each), rng.random) for each in rng.permutation(words))


def _sentence(scene: Scene, draw: Draw) -> str:
    sentence = _pick(_OPENINGS, draw).format(_arrangement(scene.solids, draw))
    if _kept(_OMIT_ATTRIBUTE, draw):
        pattern = [scene.pattern] if scene.pattern is not None and _kept(_OMIT_ATTRIBUTE, draw) else []
        background = " ".join([*pattern, _word(scene.background, draw)])
        place = _pick(_PLACES, draw).format(_with_article(background))
        sentence = _pick(_ORDERS, draw).format(things=sentence, place=place)
    if scene.lighting is not None and _kept(_OMIT_ATTRIBUTE, draw):
        sentence = f"{sentence}, {scene.lighting}"
    if scene.degradation is None:
        return sentence
    return _pick(_REMARKS, draw).format(sentence=sentence, remark=_word(scene.degradation, draw))


def _arrangement(solids: tuple[Solid, ...], draw: Draw) -> str:
    if len(solids) == 1:
        return _noun(solids[0], draw)
    if len(solids) == 3:
        first, second, third = (_noun(solid, draw) for solid in solids)
        order = " from left to right" if _kept(_OMIT_RELATION, draw) else ""
        return f"{first}, {second} and {third}{order}"
    first, second = solids if draw() < 0.5 else reversed(solids)
    between = "and"
    if _kept(_OMIT_RELATION, draw):
        between = _pick(RELATIONS[relation(first, second)], draw)
    return f"{_noun(first, draw)} {between} {_noun(second, draw)}"


def _noun(solid: Solid, draw: Draw) -> str:
    size = [_word(solid.size, draw)] if _kept(_OMIT_ATTRIBUTE, draw) else []
    color, shape = _word(solid.color, draw), _word(solid.shape, draw)
    words = [*size, color, shape]
    if _kept(_OMIT_ATTRIBUTE, draw):
        made_of = [*size, color, shape, "made of", solid.material]
        words = _pick(([*size, color, _word(solid.material, draw), shape], made_of), draw)
    return _with_article(" ".join(words))


def _word(value: str, draw: Draw) -> str:
    return _pick(SYNONYMS.get(value, (value,)), draw)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(options: Sequence[T], draw: Draw) -> T:
    return options[int(draw() * len(options))]


def _kept(omitted: float, draw: Draw) -> bool:
    return draw() < 1 - omitted


def _vocabulary() -> tuple[str, ...]:
    values = (*SHAPES, *COLORS, *SIZES, *MATERIALS, *DEGRADATIONS, *PATTERNS, *LIGHTINGS)
    phrases = [word for value in values for word in SYNONYMS.get(value, (value,))]
    phrases += [phrase for relation in RELATIONS.values() for phrase in relation]
    phrases += ["from left to right"]
    phrases += [phrase.replace("{}", "") for phrase in (*_PLACES, *_OPENINGS)]
    phrases += ["a", "an", "and", "made of", ","]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


_STANDS = {
    RELATIONS["left"][0]: (-2.0, 0.0, 0.0),
    RELATIONS["right"][0]: (2.0, 0.0, 0.0),
    RELATIONS["front"][0]: (0.0, -1.0, 0.0),
    RELATIONS["behind"][0]: (0.0, 1.0, 0.0),
}
"""Where the first of two solids may stand, the other in the middle: to the right, into the depth, up."""


def _full() -> re.Pattern[str]:
    def one_of(name: str, words: Iterable[str]) -> str:
        return f"(?P<{name}>{'|'.join(map(re.escape, words))})"

    def noun(which: str) -> str:
        kinds = {"size": SIZES, "color": COLORS, "material": MATERIALS, "shape": SHAPES}
        return "an? " + " ".join(one_of(f"{which}_{name}", words) for name, words in kinds.items())

    second = f"(?: {one_of('relation', _STANDS)} {noun('second')})?"
    return re.compile(f"{noun('first')}{second} on an? {one_of('background', COLORS)} background")


_FULL = _full()

VOCABULARY = _vocabulary()
"""Every word and mark that a caption can contain, in any world."""
