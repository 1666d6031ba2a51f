"""Metrics of a sweep's images, and worlds whose ground truth is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ssd1b.errors import InputError
from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.image_statistics import image_statistics
from ssd1b.evaluate.published import find_scorers
from ssd1b.jobs.executor import Measure
from ssd1b.models.vision import IMAGE_ENCODER
from ssd1b.pipeline import Pipeline
from ssd1b.prompts import NO_PROMPT

_NAMES = {"CLIP score": "clip", "PickScore": "pickscore"}
"""Names of the published metrics in sweeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """The ground truth of a world, which a model declares by name in its ``ssd1b.json``.

    Attributes:
        captions: ``captions(count, stream)`` returns complete held-out captions. Different streams give
            different captions.
        judge: loads the judge, which measures how well an image matches its caption.
        faults: names of the faults that the judge recognises in spoiled images.
    """

    captions: Callable[[int, int], list[str]]
    judge: Callable[[], Measure]
    faults: frozenset[str]


def captions(truth: GroundTruth | None, count: int, *, stream: int) -> list[str]:
    """Return captions to use as prompts.

    Raises:
        InputError: the model declares no world.
    """
    if truth is None:
        raise InputError(NO_PROMPT)
    return truth.captions(count, stream)


def make_measure(pipeline: Pipeline, model: Path, truth: GroundTruth | None) -> Measure:
    """Return a function that computes all metrics available for a model's images.

    These are image statistics; the CLIP score if the model contains an image encoder, otherwise the published
    CLIP score and PickScore if their networks are in the hub's cache; and the judge's metrics if the ground
    truth is known.

    Args:
        pipeline: the model.
        model: its folder or file.
        truth: of the world that the model declares, if any.
    """
    clip = ClipScore.load(model, pipeline.text) if (model / IMAGE_ENCODER).is_dir() else None
    scorers = {} if clip is not None else find_scorers(pipeline.device, offline=True)[0]
    judge = truth and truth.judge()

    def measure(picture: Image.Image, prompt: str) -> Mapping[str, float]:
        metrics = image_statistics(np.asarray(picture))
        if clip is not None:
            metrics["clip"] = float(clip([picture], [prompt])[0, 0])
        metrics |= {_NAMES[name]: float(each([picture], [prompt])[0]) for name, each in scorers.items()}
        return metrics if judge is None else {**metrics, **judge(picture, prompt)}

    return measure
