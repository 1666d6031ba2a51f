"""How far the judge can be trusted: it reads pictures whose scenes are known.

Solids are paired by place, not by what the judge says of them, so that a wrong answer counts as wrong.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ssd1b.evaluate.reconstruction import reconstruct
from ssd1b.evaluate.statistics import Estimate, estimate
from ssd1b.models.vae import VAE
from ssd1b.tabletop.judge.judge import (
    CLEAN,
    PICTURE_ANSWERS,
    SOLID_ANSWERS,
    Judge,
    Pairs,
    Reading,
    Seen,
    stand_as_wanted,
)
from ssd1b.tabletop.world.degradations import COLORLESS
from ssd1b.tabletop.world.renderer import render_batch
from ssd1b.tabletop.world.scenes import PLAIN, Scene, Solid, Split, World, scene

UNSEEN = "unseen"
"""Said of a solid for which the judge found none."""

ANSWERS: Mapping[str, tuple[str, ...]] = {**SOLID_ANSWERS, **PICTURE_ANSWERS}
"""Every question and its possible answers."""

SEED = 2000
"""Of the stream that is read; trainings use 0 to 5, evaluations 1000 to 1002."""

CLEAN_WORLD = replace(PLAIN, degraded=0.0)
"""What evaluations draw: a spoiled picture may hide what is asked."""

BATCH_SIZE = 64
_FAR = 0.5  # a solid seen further from a wanted one than this, in world units to the side, is another one


class Verdict(NamedTuple):
    """One answer of the judge beside the truth; ``chance`` is the probability it gave its own answer."""

    question: str
    truth: str
    said: str
    chance: float


@dataclass(frozen=True, slots=True)
class Examination:
    """All verdicts on a set of pictures.

    Attributes:
        verdicts: on every question that the picture answers (of a monochrome one, no colours).
        numbers: for each picture whether it has as many solids as the judge saw.
        relations: for each picture of two solids whether they stand as the judge says.
    """

    verdicts: list[Verdict]
    numbers: list[bool]
    relations: list[bool]

    def add(self, scene: Scene, reading: Reading) -> None:
        """Hold one reading against its scene."""
        self.verdicts.extend(_of_picture(scene, reading))
        if scene.degradation == "cropped":
            return
        pairs = paired_by_place(scene.solids, reading.solids)
        self.verdicts.extend(_of_solids(pairs, colors=scene.degradation not in COLORLESS))
        self.numbers.append(len(reading.solids) == len(scene.solids))
        if len(pairs) == 2:
            self.relations.append(stand_as_wanted(pairs))

    def accuracy(self) -> dict[str, Estimate]:
        """Share of right answers to each question, and of right numbers and relations."""
        right = {name: [v.truth == v.said for v in self.verdicts if v.question == name] for name in ANSWERS}
        return {
            name: estimate(values)
            for name, values in {**right, "number": self.numbers, "relation": self.relations}.items()
        }

    def confusion(self, question: str) -> NDArray[np.int64]:
        """How often each true answer (row) was read as each answer (column; the last is ``UNSEEN``)."""
        answers = (*ANSWERS[question], UNSEEN)
        counts = np.zeros((len(answers) - 1, len(answers)), np.int64)
        for verdict in self.verdicts:
            if verdict.question == question:
                counts[answers.index(verdict.truth), answers.index(verdict.said)] += 1
        return counts

    def calibration(self, question: str, bins: int = 10) -> list[tuple[float, float, int]]:
        """Mean probability given, share right and number of answers, by bins of equally many answers.

        Solids that were not seen have no probability and do not count.
        """
        known = sorted(
            (v.chance, v.truth == v.said)
            for v in self.verdicts
            if v.question == question and v.said != UNSEEN
        )
        parts = [part for part in np.array_split(np.array(known, float).reshape(-1, 2), bins) if len(part)]
        return [(float(part[:, 0].mean()), float(part[:, 1].mean()), len(part)) for part in parts]


Renderer: TypeAlias = Callable[[Sequence[Scene]], NDArray[np.uint8]]
"""Makes pictures of scenes, ``[scenes, SIZE, SIZE, 3]``."""


def through(vae: VAE) -> Renderer:
    """Show scenes as an autoencoder gives them back, which is the best that a model can draw."""
    return lambda scenes: reconstruct(vae, render_batch(scenes))


def examine(
    judge: Judge, count: int, render: Renderer = render_batch, *, world: World = PLAIN, label: str = "examine"
) -> Examination:
    """Let the judge read pictures of scenes that no training saw, and hold what it says against the scenes.

    Of cropped pictures nothing is asked but their degradation, since solids may be cut off.

    Args:
        judge: in evaluation mode.
        count: how many pictures, half of them with combinations that no training stream has.
        render: makes the pictures that the judge reads.
        world: where scenes are from; ``CLEAN_WORLD`` spoils no picture.
        label: what the progress bar is called.
    """
    splits: tuple[Split, ...] = ("train", "held_out")
    found = Examination([], [], [])
    with tqdm(total=count, desc=label, unit="picture", disable=None, leave=False) as bar:
        for start in range(0, count, BATCH_SIZE):
            scenes = [
                scene(SEED, index, split=splits[index % 2], world=world)
                for index in range(start, min(start + BATCH_SIZE, count))
            ]
            for each, reading in zip(scenes, judge.read(render(scenes)), strict=True):
                found.add(each, reading)
            bar.update(len(scenes))
    return found


def paired_by_place(wanted: Sequence[Solid], seen: Sequence[Seen]) -> Pairs:
    """Give each wanted solid the one seen nearest to its place, none to two."""
    padded = [*seen, *[None] * len(wanted)]

    def distance(chosen: Sequence[Seen | None]) -> float:
        gaps = (
            _FAR if other is None else math.hypot(solid.x - other.x, (solid.depth - other.depth) / 2)
            for solid, other in zip(wanted, chosen, strict=True)
        )
        return sum(min(gap, 2 * _FAR) for gap in gaps)

    best = min(itertools.permutations(padded, len(wanted)), key=distance)
    return list(zip(wanted, best, strict=True))


def _of_picture(scene: Scene, reading: Reading) -> Iterator[Verdict]:
    yield Verdict(
        "degradation",
        scene.degradation or CLEAN,
        reading.degradation or CLEAN,
        reading.chances["degradation"],
    )
    if scene.degradation not in COLORLESS:
        yield Verdict("background", scene.background, reading.background, reading.chances["background"])


def _of_solids(pairs: Pairs, *, colors: bool) -> Iterator[Verdict]:
    for solid, other in pairs:
        for question in SOLID_ANSWERS:
            if question == "color" and not colors:
                continue
            truth = getattr(solid, question)
            if other is None:
                yield Verdict(question, truth, UNSEEN, math.nan)
            else:
                yield Verdict(question, truth, other.answers[question], other.chances[question])
