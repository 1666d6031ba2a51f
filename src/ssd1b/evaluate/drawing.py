"""Drawing many pictures from captions, each from noise of its own, with the time it takes."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from PIL import Image
from tqdm import tqdm

from ssd1b.pipeline import Pipeline

Task: TypeAlias = tuple[str, int]
"""A caption and a seed."""


def draw(
    pipeline: Pipeline, tasks: Sequence[Task], *, batch_size: int, label: str = "draw", **settings: Any
) -> Iterator[tuple[Image.Image, float]]:
    """Draw in batches: each picture with its share of the seconds that its batch took.

    Args:
        pipeline: the model.
        tasks: what to draw; a picture does not depend on the others of its batch.
        batch_size: pictures drawn at a time.
        label: what the progress bar is called.
        **settings: any field of ``GenerationSettings`` but prompt and seed.
    """
    with tqdm(total=len(tasks), desc=label, unit="picture", disable=None, leave=False) as bar:
        for start in range(0, len(tasks), batch_size):
            batch = [
                pipeline.settings(caption, seed=seed, **settings)
                for caption, seed in tasks[start : start + batch_size]
            ]
            clock = time.perf_counter()
            *_, last = pipeline.steps(batch)
            images = pipeline.preview(last.latents)
            seconds = (time.perf_counter() - clock) / len(batch)
            yield from ((image, seconds) for image in images)
            bar.update(len(batch))
