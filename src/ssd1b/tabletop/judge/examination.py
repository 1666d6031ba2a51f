"""The accuracy of the judge, measured on images of known scenes.

Solids are paired by position rather than by attributes, so that a wrong answer counts as wrong.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssd1b.evaluate.reconstruction import reconstruct
from ssd1b.evaluate.statistics import Estimate, estimate
from ssd1b.models.vae import VAE
from ssd1b.progress import progress_bar
from ssd1b.tabletop.judge.judge import (
    CLEAN,
    PICTURE_ANSWERS,
    SOLID_ANSWERS,
    Judge,
    Pairs,
    Reading,
    Seen,
    relation_is_right,
)
from ssd1b.tabletop.world.degradations import COLORLESS
from ssd1b.tabletop.world.renderer import render_batch
from ssd1b.tabletop.world.scenes import PLAIN, Scene, Solid, Split, World, scene

UNSEEN = "unseen"
"""The answer for a solid that the judge did not detect."""

ANSWERS: Mapping[str, tuple[str, ...]] = {**SOLID_ANSWERS, **PICTURE_ANSWERS}
"""All questions with their possible answers."""

SEED = 2000
"""Seed of the stream of scenes; trainings use 0 to 5, evaluations 1000 to 1002."""

CLEAN_WORLD = replace(PLAIN, degraded=0.0)
"""The world of evaluations; a degradation could hide the answer."""

BATCH_SIZE = 64
_FAR = 0.5  # world units to the side beyond which a detected solid is not the wanted one


class Verdict(NamedTuple):
    """One answer of the judge, with the truth and the probability that the judge gave its answer."""

    question: str
    truth: str
    said: str
    chance: float


@dataclass(frozen=True, slots=True)
class Examination:
    """All verdicts on a set of images.

    Attributes:
        verdicts: on every question that the image answers; monochrome images have no colours.
        numbers: for each image, whether the judge detected the right number of solids.
        relations: for each image of two solids, whether their relation was right.
    """

    verdicts: list[Verdict]
    numbers: list[bool]
    relations: list[bool]

    def add(self, scene: Scene, reading: Reading) -> None:
        """Compare a reading with its scene."""
        self.verdicts.extend(_image_verdicts(scene, reading))
        if scene.degradation == "cropped":
            return
        pairs = pair_by_position(scene.solids, reading.solids)
        self.verdicts.extend(_solid_verdicts(pairs, colors=scene.degradation not in COLORLESS))
        self.numbers.append(len(reading.solids) == len(scene.solids))
        if len(pairs) == 2:
            self.relations.append(relation_is_right(pairs))

    def accuracy(self) -> dict[str, Estimate]:
        """Estimate the share of right answers to each question, and of right numbers and relations."""
        right = {name: [v.truth == v.said for v in self.verdicts if v.question == name] for name in ANSWERS}
        return {
            name: estimate(values)
            for name, values in {**right, "number": self.numbers, "relation": self.relations}.items()
        }

    def confusion(self, question: str) -> NDArray[np.int64]:
        """Count how often each true answer (row) was read as each answer (column; the last is ``UNSEEN``)."""
        answers = (*ANSWERS[question], UNSEEN)
        counts = np.zeros((len(answers) - 1, len(answers)), np.int64)
        for verdict in self.verdicts:
            if verdict.question == question:
                counts[answers.index(verdict.truth), answers.index(verdict.said)] += 1
        return counts

    def calibration(self, question: str, bins: int = 10) -> list[tuple[float, float, int]]:
        """Return mean probability, share of right answers and their number, in bins of equal numbers.

        Solids that were not detected have no probability and do not count.
        """
        known = sorted(
            (v.chance, v.truth == v.said)
            for v in self.verdicts
            if v.question == question and v.said != UNSEEN
        )
        parts = [part for part in np.array_split(np.array(known, float).reshape(-1, 2), bins) if len(part)]
        return [(float(part[:, 0].mean()), float(part[:, 1].mean()), len(part)) for part in parts]


Renderer: TypeAlias = Callable[[Sequence[Scene]], NDArray[np.uint8]]
"""Renders scenes, ``[scenes, SIZE, SIZE, 3]``."""


def through_vae(vae: VAE) -> Renderer:
    """Return a renderer whose images an autoencoder reconstructs, the best that a model can reach."""
    return lambda scenes: reconstruct(vae, render_batch(scenes))


def examine(
    judge: Judge, count: int, render: Renderer = render_batch, *, world: World = PLAIN, label: str = "examine"
) -> Examination:
    """Compare the judge's readings with scenes that no training contained.

    Cropped images count for degradation and background only, since solids may be cut off.

    Args:
        judge: in evaluation mode.
        count: number of images, half of them with held-out combinations.
        render: renders the scenes.
        world: the scenes' world; ``CLEAN_WORLD`` has no degradations.
        label: of the progress bar.
    """
    splits: tuple[Split, ...] = ("train", "held_out")
    found = Examination([], [], [])
    with progress_bar(total=count, label=label, unit="picture") as bar:
        for start in range(0, count, BATCH_SIZE):
            scenes = [
                scene(SEED, index, split=splits[index % 2], world=world)
                for index in range(start, min(start + BATCH_SIZE, count))
            ]
            for each, reading in zip(scenes, judge.read(render(scenes)), strict=True):
                found.add(each, reading)
            bar.update(len(scenes))
    return found


def pair_by_position(wanted: Sequence[Solid], seen: Sequence[Seen]) -> Pairs:
    """Pair each wanted solid with the nearest detected one, each used at most once."""
    padded = [*seen, *[None] * len(wanted)]

    def distance(chosen: Sequence[Seen | None]) -> float:
        gaps = (
            _FAR if other is None else math.hypot(solid.x - other.x, (solid.depth - other.depth) / 2)
            for solid, other in zip(wanted, chosen, strict=True)
        )
        return sum(min(gap, 2 * _FAR) for gap in gaps)

    best = min(itertools.permutations(padded, len(wanted)), key=distance)
    return list(zip(wanted, best, strict=True))


def _image_verdicts(scene: Scene, reading: Reading) -> Iterator[Verdict]:
    yield Verdict(
        "degradation",
        scene.degradation or CLEAN,
        reading.degradation or CLEAN,
        reading.chances["degradation"],
    )
    if scene.degradation not in COLORLESS:
        yield Verdict("background", scene.background, reading.background, reading.chances["background"])


def _solid_verdicts(pairs: Pairs, *, colors: bool) -> Iterator[Verdict]:
    for solid, other in pairs:
        for question in SOLID_ANSWERS:
            if question == "color" and not colors:
                continue
            truth = getattr(solid, question)
            if other is None:
                yield Verdict(question, truth, UNSEEN, math.nan)
            else:
                yield Verdict(question, truth, other.answers[question], other.chances[question])
