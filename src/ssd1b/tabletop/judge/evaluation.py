"""What a model's pictures of Tabletop are worth: drawn from captions, read by the judge, counted.

The captions are of scenes that no training saw. Half of them show a combination of shape, colour and material
that no training picture did.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.cost import count_rows, unet_macs
from ssd1b.evaluate.distances import diversity, frechet_distance, kernel_distance
from ssd1b.evaluate.drawing import draw_captions
from ssd1b.evaluate.reconstruction import psnr, reconstruct
from ssd1b.evaluate.statistics import Estimate, by_prompt, difference, estimate
from ssd1b.pipeline import Pipeline
from ssd1b.settings import Preset
from ssd1b.tabletop.judge.judge import SOLID_ANSWERS, Judge, Pairs, Reading, Seen, stand_as_wanted
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.renderer import render_batch
from ssd1b.tabletop.world.scenes import Scene, Solid, Split, scene

SEED = 1000
"""Of the stream that captions are taken from; trainings use 0 to 5."""

BATCH_SIZE = 8
"""Pictures drawn at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One picture to draw: what its caption says, whether its combination was ever seen, and the noise."""

    scene: Scene
    split: Split
    seed: int

    @property
    def caption(self) -> str:
        """Everything that the picture should show."""
        return full_caption(self.scene)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the judge says of one picture; NaN where the caption asks for nothing.

    Attributes:
        solids: for shape, colour, size and material, the share of the caption's solids that have it right.
        number: whether there are as many solids as the caption names.
        background: whether the background is right.
        relation: whether the two solids stand as the caption says.
        clean: whether the picture shows no degradation.
        right: whether everything is that the caption says: number, background, every attribute of every
            solid, and how two solids stand.
        flawless: right and clean. The judge reads what spoiled pictures show, too, and only this tells a
            good one.
    """

    solids: dict[str, float]
    number: float
    background: float
    relation: float
    clean: float
    right: float
    flawless: float

    @property
    def values(self) -> dict[str, float]:
        """Everything by name."""
        names = ("number", "background", "relation", "clean", "right", "flawless")
        return {**self.solids, **{name: getattr(self, name) for name in names}}


def cases(captions: int, seeds: int = 1, *, stream: int = SEED) -> list[Case]:
    """The fixed set of cases: ``captions`` captions, seen and new combinations in turn, times ``seeds``.

    No two cases share their noise, so that figures hold for noise at large and not for one drawing of it.
    """
    splits: tuple[Split, ...] = ("train", "held_out")
    chosen = []
    for index in range(captions):
        split = splits[index % 2]
        plain = replace(scene(stream, index, split=split), degradation=None)
        chosen += [Case(scene=plain, split=split, seed=index * seeds + number) for number in range(seeds)]
    return chosen


def score(wanted: Scene, seen: Reading) -> Score:
    """Compare what a caption says with what the judge read."""
    pairs = _paired(wanted.solids, seen.solids)
    solids = {
        name: float(np.mean([other is not None and other.answers[name] == getattr(solid, name)
                             for solid, other in pairs]))
        for name in SOLID_ANSWERS
    }  # fmt: skip
    number = float(len(seen.solids) == len(wanted.solids))
    background = float(seen.background == wanted.background)
    relation = float(stand_as_wanted(pairs)) if len(pairs) == 2 else float("nan")
    right = bool(number and background and relation != 0 and all(value == 1 for value in solids.values()))
    clean = seen.degradation is None
    return Score(
        solids=solids,
        number=number,
        background=background,
        relation=relation,
        clean=float(clean),
        right=float(right),
        flawless=float(right and clean),
    )


def _paired(wanted: Sequence[Solid], seen: Sequence[Seen]) -> Pairs:
    """Give each wanted solid one that was seen, so that most attributes agree."""
    padded = [*seen, *[None] * max(0, len(wanted) - len(seen))]

    def agreement(chosen: tuple[Seen | None, ...]) -> int:
        return sum(
            other is not None and other.answers[name] == getattr(solid, name)
            for solid, other in zip(wanted, chosen, strict=True)
            for name in SOLID_ANSWERS
        )

    best = max(itertools.permutations(padded, len(wanted)), key=agreement)
    return list(zip(wanted, best, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model's figures over a set of cases.

    Attributes:
        cases: as ``cases`` gives them, ``seeds`` of each caption.
        pictures: one for each case, ``[cases, SIZE, SIZE, 3]``.
        values: for each name of ``Score.values``, and "clip", one value for each case.
        seconds: of one picture, median.
        macs: multiply-accumulate operations of the UNet's passes for one picture, each counted whole, as
            published figures do, although what is read of the text is computed once.
        frechet: squared distance of the pictures from renders of other scenes, in the judge's features;
            ``frechet_renders`` is what two such sets of renders have.
        kernel: likewise.
        psnr: of renders that the model's autoencoder encoded and decoded, in dB.
        diversity: of each caption, the mean distance in features between its pictures of two seeds.
    """

    cases: list[Case]
    seeds: int
    pictures: NDArray[np.uint8]
    values: dict[str, NDArray[np.float64]]
    seconds: float
    macs: float
    frechet: float
    frechet_renders: float
    kernel: float
    kernel_renders: float
    psnr: Estimate
    diversity: Estimate

    def table(self) -> dict[str, dict[str, Estimate]]:
        """Every value for all cases and for parts of them: one and two solids, seen and new combinations."""
        captions = self.cases[:: self.seeds]
        groups = {
            "all": [True for _ in captions],
            "one solid": [len(case.scene.solids) == 1 for case in captions],
            "two solids": [len(case.scene.solids) == 2 for case in captions],
            "seen": [case.split == "train" for case in captions],
            "new": [case.split == "held_out" for case in captions],
        }
        values = {name: by_prompt(each, self.seeds) for name, each in self.values.items()}
        return {
            group: {name: estimate(each[np.array(chosen)]) for name, each in values.items()}
            for group, chosen in groups.items()
        }

    def facts(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        return {
            "table": {
                group: {name: each._asdict() for name, each in row.items()}
                for group, row in self.table().items()
            },
            "frechet": self.frechet,
            "frechet_renders": self.frechet_renders,
            "kernel": self.kernel,
            "kernel_renders": self.kernel_renders,
            "autoencoder_psnr": self.psnr._asdict(),
            "diversity": self.diversity._asdict(),
            "seconds": self.seconds,
            "unet_gmacs": self.macs / 1e9,
        }


def evaluate(
    pipeline: Pipeline,
    judge: Judge,
    clip: ClipScore,
    *,
    captions: int,
    seeds: int,
    preset: Preset | None = None,
    **given: Any,
) -> Evaluation:
    """Draw the fixed set of cases and judge the pictures."""
    chosen = cases(captions, seeds)
    with count_rows(pipeline.unet) as batches:
        tasks = [(case.caption, case.seed) for case in chosen]
        drawn = list(draw_captions(pipeline, tasks, batch_size=BATCH_SIZE, preset=preset, **given))
    images = [image for image, _ in drawn]
    pictures = np.stack([np.asarray(image) for image in images])
    seen = judge.read(pictures)
    features = _stacked(seen)
    renders = [
        render_batch([case.scene for case in cases(len(chosen), stream=SEED + offset)]) for offset in (1, 2)
    ]
    features_of_renders = [_stacked(judge.read(each)) for each in renders]
    scores = [score(case.scene, reading).values for case, reading in zip(chosen, seen, strict=True)]
    values = {name: np.array([each[name] for each in scores]) for name in scores[0]}
    values["clip"] = np.array(
        [float(clip([image], [case.caption])[0, 0]) for image, case in zip(images, chosen, strict=True)]
    )
    unet = pipeline.layout.unet
    side = pictures.shape[1] // pipeline.layout.vae.factor
    return Evaluation(
        cases=chosen,
        seeds=seeds,
        pictures=pictures,
        values=values,
        seconds=float(np.median([seconds for _, seconds in drawn])),
        macs=unet_macs(unet, side, side) * sum(batches) / len(chosen),
        frechet=frechet_distance(features, features_of_renders[0]),
        frechet_renders=frechet_distance(*features_of_renders),
        kernel=kernel_distance(features, features_of_renders[0]),
        kernel_renders=kernel_distance(*features_of_renders),
        psnr=estimate(psnr(renders[0], reconstruct(pipeline.vae, renders[0]))),
        diversity=estimate(diversity(features.reshape(captions, seeds, -1))),
    )


def compare(first: Evaluation, second: Evaluation) -> dict[str, Estimate]:
    """By how much the second exceeds the first, value by value, paired by caption and noise."""
    return {
        name: difference(by_prompt(first.values[name], first.seeds), by_prompt(values, second.seeds))
        for name, values in second.values.items()
    }


def _stacked(seen: Sequence[Reading]) -> NDArray[np.float64]:
    return np.stack([reading.features for reading in seen]).astype(np.float64)
