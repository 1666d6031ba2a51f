"""Evaluation of a model on Tabletop: images are generated from captions and read by the judge.

The captions describe scenes that no training contained. Half of them have a held-out combination of shape,
colour and material.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.cost import unet_macs
from ssd1b.evaluate.distances import diversity, frechet_distance, kernel_distance
from ssd1b.evaluate.drawing import Drawn
from ssd1b.evaluate.reconstruction import psnr, reconstruct
from ssd1b.evaluate.statistics import Estimate, by_prompt, difference, estimate
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.judge.judge import SOLID_ANSWERS, Judge, Pairs, Reading, Seen, relation_is_right
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.renderer import render_batch
from ssd1b.tabletop.world.scenes import Scene, Solid, Split, scene

SEED = 1000
"""Seed of the stream of scenes; trainings use 0 to 5."""

BATCH_SIZE = 8
"""Number of images generated at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One image to generate: its scene, whether that is held out, and the seed of the noise."""

    scene: Scene
    split: Split
    seed: int

    @property
    def caption(self) -> str:
        """The prompt: the scene's complete caption."""
        return full_caption(self.scene)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Scores of one image, 0 to 1; NaN if the caption does not determine them.

    Attributes:
        solids: share of the caption's solids with the right shape, colour, size and material.
        number: whether the number of solids is right.
        background: whether the background is right.
        relation: whether the relation of two solids is right.
        clean: whether the image shows no degradation.
        right: whether everything that the caption says is right: number, background, all attributes of all
            solids, and the relation.
        flawless: right and clean. A degraded image can be right, since the judge reads such images, too.
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
        """All scores by name."""
        values = asdict(self)
        return {**values.pop("solids"), **values}


def cases(captions: int, seeds: int = 1, *, stream: int = SEED) -> list[Case]:
    """Return the fixed set of cases: ``captions`` captions, alternately seen and held out, times ``seeds``.

    Every case has its own noise, so that results do not depend on one particular noise.
    """
    splits: tuple[Split, ...] = ("train", "held_out")
    chosen: list[Case] = []
    for index in range(captions):
        split = splits[index % 2]
        plain = replace(scene(stream, index, split=split), degradation=None)
        chosen += [Case(scene=plain, split=split, seed=index * seeds + number) for number in range(seeds)]
    return chosen


def score(wanted: Scene, seen: Reading) -> Score:
    """Score a reading against the wanted scene."""
    pairs = _pair_by_attributes(wanted.solids, seen.solids)
    solids = {
        name: float(np.mean([other is not None and other.answers[name] == getattr(solid, name)
                             for solid, other in pairs]))
        for name in SOLID_ANSWERS
    }  # fmt: skip
    number = float(len(seen.solids) == len(wanted.solids))
    background = float(seen.background == wanted.background)
    relation = float(relation_is_right(pairs)) if len(pairs) == 2 else float("nan")
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


def _pair_by_attributes(wanted: Sequence[Solid], seen: Sequence[Seen]) -> Pairs:
    """Pair wanted and detected solids so that as many attributes as possible agree."""
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
    """A model's results on a set of cases.

    Attributes:
        cases: from ``cases``.
        seeds: number of cases for each caption.
        pictures: image of each case, ``[cases, SIZE, SIZE, 3]``.
        values: one value per case, for each name of ``Score.values`` and "clip".
        seconds: median time per image.
        macs: multiply-accumulate operations of the UNet per image. As in published figures, every forward
            pass counts in full, although keys and values of the text are computed once.
        frechet: squared Fréchet distance from renders of other scenes, in the judge's features.
        frechet_renders: the same distance between two sets of renders.
        kernel: kernel distance from renders of other scenes.
        kernel_renders: the same distance between two sets of renders.
        psnr: of renders reconstructed by the model's autoencoder, in dB.
        diversity: mean feature distance between the images of one caption with different seeds.
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
        """Estimate every value for all cases, by number of solids, and for seen and held-out combinations."""
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
        """Return everything except the images, for JSON."""
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
    chosen: list[Case],
    drawn: Sequence[Drawn],
    pipeline: Pipeline,
    judge: Judge,
    clip: ClipScore,
    *,
    seeds: int,
) -> Evaluation:
    """Evaluate the images of cases.

    Args:
        chosen: the result of ``cases``.
        drawn: an image for each of them.
        pipeline: the model that generated them. Of its networks only the autoencoder is used.
        judge: reads the images.
        clip: the model's CLIP score.
        seeds: images per caption.
    """
    images = [each.image for each in drawn]
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
        seconds=float(np.median([each.seconds for each in drawn])),
        macs=unet_macs(unet, side, side) * sum(each.passes for each in drawn) / len(chosen),
        frechet=frechet_distance(features, features_of_renders[0]),
        frechet_renders=frechet_distance(*features_of_renders),
        kernel=kernel_distance(features, features_of_renders[0]),
        kernel_renders=kernel_distance(*features_of_renders),
        psnr=estimate(psnr(renders[0], reconstruct(pipeline.vae, renders[0]))),
        diversity=estimate(diversity(features.reshape(len(chosen) // seeds, seeds, -1))),
    )


def compare(first: Evaluation, second: Evaluation) -> dict[str, Estimate]:
    """Estimate the difference, second minus first, of each value, paired by caption and noise."""
    return {
        name: difference(by_prompt(first.values[name], first.seeds), by_prompt(values, second.seeds))
        for name, values in second.values.items()
    }


def _stacked(seen: Sequence[Reading]) -> NDArray[np.float64]:
    return np.stack([reading.features for reading in seen]).astype(np.float64)
