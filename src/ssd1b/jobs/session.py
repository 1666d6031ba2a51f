"""A loaded model that generates batches, and reports their progress until they are cancelled."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from PIL import Image

from ssd1b.diffusion.samplers import Step
from ssd1b.jobs.executor import JobResult, renderer
from ssd1b.jobs.previews import previews
from ssd1b.pipeline import Pipeline
from ssd1b.settings import GenerationSettings

PREVIEW_QUALITY = 80
"""JPEG quality of previews."""

_LEAST_INTERVAL = 0.05
"""Seconds between reports without a preview."""


class CancelledError(Exception):
    """The batch was cancelled."""


class Progress(NamedTuple):
    """The progress of a batch.

    Attributes:
        batch: number of the batch.
        step: denoising steps done so far.
        preview: a JPEG of the batch's first image; None if no preview was made at this step.
    """

    batch: int
    step: int
    preview: bytes | None


class Session:
    """A loaded model.

    Args:
        model: the model's name.
        options: keyword arguments of ``Pipeline.load``.
        report: called with the progress of each batch.
        cancelled: returns the number of the last batch that was cancelled; those before it are, too.
        previewed: returns whether previews are wanted.

    Raises:
        InputError: there is no such model or its files are damaged.
    """

    def __init__(
        self,
        model: str,
        options: Mapping[str, Any],
        *,
        report: Callable[[Progress], object],
        cancelled: Callable[[], int],
        previewed: Callable[[], bool],
    ) -> None:
        self._pipeline = Pipeline.load(model, **options)
        # Requests have noise of their own, so kept steps would only take memory.
        self._render = ExitStack().enter_context(
            renderer(self._pipeline, lambda image, prompt: {}, share_steps=False, folders=False)
        )
        self._report, self._cancelled, self._previewed = report, cancelled, previewed

    def generate(self, number: int, batch: Sequence[GenerationSettings]) -> list[JobResult]:
        """Generate a batch.

        Args:
            number: of the batch.
            batch: the settings of each image; their batch keys must be equal.

        Raises:
            CancelledError: it was cancelled.
        """
        made: list[bytes] = []

        def show(image: Image.Image) -> None:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=PREVIEW_QUALITY)
            made.append(file.getvalue())

        preview = previews(self._pipeline, show)
        last = time.monotonic()

        def watch(step: Step) -> None:
            nonlocal last
            if number <= self._cancelled():
                raise CancelledError("cancelled")
            if self._previewed():
                preview(step)
            now = time.monotonic()
            if made or now - last > _LEAST_INTERVAL:
                last = now
                self._report(Progress(number, step.index + 1, made.pop() if made else None))
                made.clear()

        return self._render(batch, watch)
