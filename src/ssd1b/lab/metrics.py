"""What is measured of a sweep's pictures: how they look; what they have right, where that can be known."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ssd1b.errors import InputError
from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.image_statistics import image_statistics
from ssd1b.evaluate.published import find_scorers
from ssd1b.lab.sweep import Measure
from ssd1b.models.vision import IMAGE_ENCODER
from ssd1b.pipeline import Pipeline
from ssd1b.prompts import NO_PROMPT
from ssd1b.tabletop.captions import understood
from ssd1b.tabletop.evaluation import cases, score
from ssd1b.tabletop.judge import load_judge
from ssd1b.tabletop.views import SIZE
from ssd1b.weights.opening import open_checkpoint

_NAMES = {"CLIP score": "clip", "PickScore": "pickscore"}
"""What published metrics are called beside the others."""


def draws_tabletop(model: Path) -> bool:
    """Whether a model, by its folder or file, draws the world of which a judge can tell what is right."""
    return open_checkpoint(model).world == "tabletop"


def captions(model: Path, count: int, *, stream: int) -> list[str]:
    """Captions that no training saw, for a model of which a judge can tell what is right.

    Args:
        model: its folder or file.
        count: how many.
        stream: of scenes.

    Raises:
        InputError: the model does not draw Tabletop.
    """
    if not draws_tabletop(model):
        raise InputError(NO_PROMPT)
    return [case.caption for case in cases(count, stream=stream)]


def meter(pipeline: Pipeline, model: Path) -> Measure:
    """What can be measured of a model's pictures.

    Of all: how they look. Of a model with an image encoder of its own: the CLIP score; else the published
    CLIP score and PickScore, if their networks are in the hub's cache. Of one that draws Tabletop: whether
    the judge finds a picture spoiled, and from prompts that are complete captions, what it finds right.

    Args:
        pipeline: the model.
        model: its folder or file.
    """
    clip = ClipScore.load(model, pipeline.text) if (model / IMAGE_ENCODER).is_dir() else None
    scorers = {} if clip is not None else find_scorers(pipeline.device, offline=True)[0]
    judge = load_judge() if draws_tabletop(model) else None

    def measure(picture: Image.Image, prompt: str) -> Mapping[str, float]:
        pixels = np.asarray(picture)
        found = image_statistics(pixels)
        if clip is not None:
            found["clip"] = float(clip([picture], [prompt])[0, 0])
        found |= {_NAMES[name]: float(each([picture], [prompt])[0]) for name, each in scorers.items()}
        if judge is not None and picture.size == (SIZE, SIZE):
            (seen,) = judge.read(pixels[None])
            wanted = understood(prompt)
            found |= (
                {"clean": float(seen.degradation is None)} if wanted is None else score(wanted, seen).values
            )
        return found

    return measure
