"""The worlds that models can declare in their ``ssd1b.json``, by name."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image

from ssd1b.jobs.executor import Measure
from ssd1b.lab.metrics import GroundTruth
from ssd1b.tabletop.judge.evaluation import SEED, cases, score
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.world.captions import parse_caption
from ssd1b.tabletop.world.degradations import DEGRADATIONS
from ssd1b.tabletop.world.views import SIZE


def _captions(count: int, stream: int) -> list[str]:
    return [case.caption for case in cases(count, stream=SEED + stream)]


def _judge() -> Measure:
    judge = load_judge()

    def measure(image: Image.Image, prompt: str) -> Mapping[str, float]:
        """Return whether an image is clean, and its score if the prompt is a complete caption."""
        if image.size != (SIZE, SIZE):
            return {}
        (seen,) = judge.read(np.asarray(image)[None])
        wanted = parse_caption(prompt)
        return {"clean": float(seen.degradation is None)} if wanted is None else score(wanted, seen).values

    return measure


WORLDS: Mapping[str, GroundTruth] = MappingProxyType({
    "tabletop": GroundTruth(captions=_captions, judge=_judge, faults=frozenset(DEGRADATIONS)),
})  # fmt: skip
