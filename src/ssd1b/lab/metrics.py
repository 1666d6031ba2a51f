"""What is measured of a sweep's pictures: how they look; what they have right, where that can be known."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.looks import looks
from ssd1b.lab.sweep import Measure
from ssd1b.models.vision import IMAGE_ENCODER
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.captions import understood
from ssd1b.tabletop.evaluation import score
from ssd1b.tabletop.judge import load_judge
from ssd1b.tabletop.views import SIZE


def meter(pipeline: Pipeline, model: Path) -> Measure:
    """What can be measured of a model's pictures.

    Of all: how they look. Of a model with an image encoder of its own: the CLIP score. Of one that draws
    Tabletop, from prompts that are complete captions: what the judge finds right.

    Args:
        pipeline: the model.
        model: its folder or file.
    """
    clip = ClipScore.load(model, pipeline.text) if (model / IMAGE_ENCODER).is_dir() else None
    judge = load_judge() if pipeline.layout.size == SIZE else None

    def measure(picture: Image.Image, prompt: str) -> Mapping[str, float]:
        pixels = np.asarray(picture)
        found = looks(pixels)
        if clip is not None:
            found["clip"] = float(clip([picture], [prompt])[0, 0])
        wanted = understood(prompt) if judge is not None and picture.size == (SIZE, SIZE) else None
        if judge is not None and wanted is not None:
            found |= score(wanted, judge.read(pixels[None])[0]).values
        return found

    return measure
