"""Generation of images, timed."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image

from ssd1b.evaluate.cost import count_rows
from ssd1b.pipeline import Pipeline, Watch, ignore
from ssd1b.settings import GenerationSettings


class Drawn(NamedTuple):
    """An image and its cost. It can be pickled; the pixels travel as they are.

    Attributes:
        image: the image.
        seconds: its share of the seconds that its batch took.
        passes: number of its forward passes of the UNet.
    """

    image: Image.Image
    seconds: float
    passes: int


@contextmanager
def timed(
    pipeline: Pipeline,
) -> Generator[Callable[[Sequence[GenerationSettings], Watch], list[Drawn]], None, None]:
    """Provide a function that generates batches, as ``jobs.executor.Render``; errors propagate.

    It divides batches that the pipeline would not generate together; see ``Pipeline.batch_limit``.
    """

    def draw(batch: Sequence[GenerationSettings], watch: Watch = ignore) -> list[Drawn]:
        size = pipeline.batch_limit(batch[0], len(batch))
        parts = (batch[start : start + size] for start in range(0, len(batch), size))
        return [drawn for part in parts for drawn in draw_part(part, watch)]

    def draw_part(batch: Sequence[GenerationSettings], watch: Watch) -> list[Drawn]:
        rows.clear()
        clock = time.perf_counter()
        pictures = pipeline.draw(batch, watch)
        seconds = (time.perf_counter() - clock) / len(batch)
        return [Drawn(each.image, seconds, sum(rows) // len(batch)) for each in pictures]

    with count_rows(pipeline.unet) as rows:
        yield draw
