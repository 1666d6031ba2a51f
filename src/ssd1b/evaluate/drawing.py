"""Generation of many images from captions, each with its seed, timed."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from PIL import Image

from ssd1b.batching import batches
from ssd1b.pipeline import Pipeline
from ssd1b.progress import progress_bar

Task: TypeAlias = tuple[str, int]
"""A caption and a seed."""


def draw_captions(
    pipeline: Pipeline, tasks: Sequence[Task], *, batch_size: int, label: str = "draw", **settings: Any
) -> Iterator[tuple[Image.Image, float]]:
    """Generate in batches; yield each image with its share of its batch's seconds, in the order of the tasks.

    Args:
        pipeline: the model.
        tasks: captions and seeds. An image does not depend on the others of its batch.
        batch_size: images per batch, fewer where batching would change them.
        label: the label of the progress bar.
        **settings: any field of ``GenerationSettings`` except prompt and seed.
    """
    chosen = [pipeline.settings(caption, seed=seed, **settings) for caption, seed in tasks]
    found: dict[int, tuple[Image.Image, float]] = {}
    next_place = 0
    with progress_bar(total=len(tasks), label=label, unit="image") as bar:
        for places in batches(
            range(len(chosen)),
            key=lambda place: pipeline.batch_key(chosen[place]),
            limit=lambda place: pipeline.batch_limit(chosen[place], batch_size),
        ):
            clock = time.perf_counter()
            pictures = pipeline.draw([chosen[place] for place in places])
            seconds = (time.perf_counter() - clock) / len(places)
            found |= {place: (each.image, seconds) for place, each in zip(places, pictures, strict=True)}
            while next_place in found:
                yield found.pop(next_place)
                next_place += 1
            bar.update(len(places))
