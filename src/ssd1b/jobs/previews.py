"""Previews of images during generation, within a share of the time."""

import time
from collections.abc import Callable

from PIL import Image

from ssd1b.diffusion.samplers import Step
from ssd1b.images import to_images, to_pixels
from ssd1b.pipeline import Pipeline, Watch
from ssd1b.speed.linear_decoder import LinearDecoder

SHARE = 0.1
"""Share of the time for decoded previews, and the same share for the sketches in between."""


def previews(pipeline: Pipeline, show: Callable[[Image.Image], object]) -> Watch:
    """Return a step callback that shows previews of the first image of a batch.

    Steps are decoded as often as ``SHARE`` allows. Steps in between are sketched by a linear decoder fitted
    to the last decoded step of the same image.

    Args:
        pipeline: the pipeline that generates the image.
        show: called with each preview; its time counts, too.
    """
    due = {"decoding": 0.0, "sketch": 0.0}
    sketch: LinearDecoder | None = None

    def watch(step: Step) -> None:
        nonlocal sketch
        begin, latents = time.perf_counter(), step.denoised[:1]
        # A new image, or the second pass of the hires fix.
        if step.index == 0 or (sketch is not None and sketch.latents.shape != latents.shape):
            sketch = None
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
