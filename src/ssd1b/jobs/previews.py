"""Previews: what a picture looks like while it is being drawn, within a share of the time."""

import time
from collections.abc import Callable

from PIL import Image

from ssd1b.diffusion.samplers import Step
from ssd1b.images import to_images, to_pixels
from ssd1b.pipeline import Pipeline, Watch
from ssd1b.speed.linear_decoder import LinearDecoder

SHARE = 0.1
"""Share of the time that decoded previews may take, and again the sketches between them."""


def previews(pipeline: Pipeline, show: Callable[[Image.Image], object]) -> Watch:
    """Give a watcher of steps that shows the first picture of a batch.

    Steps are decoded as often as ``SHARE`` allows. Steps in between are sketched by a linear decoder that is
    fitted to the last decoded step of the same picture.

    Args:
        pipeline: the model that draws.
        show: called with each preview; its time counts, too.
    """
    due = {"decoding": 0.0, "sketch": 0.0}
    sketch: LinearDecoder | None = None

    def watch(step: Step) -> None:
        nonlocal sketch
        if step.index == 0:  # a new picture
            sketch = None
        begin, latents = time.perf_counter(), step.denoised[:1]
        if begin >= due["decoding"]:
            kind = "decoding"
            (image,) = pipeline.preview(latents)
            sketch = LinearDecoder(latents, to_pixels(image).to(latents.device))
        elif sketch is not None and begin >= due["sketch"]:
            kind = "sketch"
            (image,) = to_images(sketch(latents))
        else:
            return
        show(image)
        end = time.perf_counter()
        due[kind] = end + (end - begin) * (1 / SHARE - 1)

    return watch
