"""Executors: generate and measure batches of images."""

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from PIL import Image

from ssd1b.errors import FailedError, InputError
from ssd1b.evaluate.cost import count_rows, deep_share
from ssd1b.images import Picture, encode_picture
from ssd1b.jobs.memoization import memoize
from ssd1b.jobs.store import DONE, FAILED, Outcome
from ssd1b.pipeline import Pipeline, Watch, ignore
from ssd1b.recipe import without_folders
from ssd1b.settings import GenerationSettings

THUMBNAIL = 16
"""Side of a thumbnail in pixels."""

TEXT_LIMIT = 64 * 2**20
"""Bytes of encoded prompts that are kept: about 100 of SDXL."""

Measure = Callable[[Image.Image, str], Mapping[str, float]]
"""``measure(image, prompt)`` returns metrics by name."""


class JobResult(NamedTuple):
    """The outcome of a job, and its image as the bytes of a PNG file; None if the job failed."""

    outcome: Outcome
    file: bytes | None

    @classmethod
    def failed(cls, reason: str) -> "JobResult":
        """Return the result of a job that failed."""
        return cls(Outcome(state=FAILED, error=reason), None)


Result = TypeVar("Result")
"""The result for one image: ``JobResult``, or ``evaluate.drawing.Drawn`` in evaluations."""

Render = Callable[[Sequence[GenerationSettings], Watch], list[Result]]
"""``render(batch, watch)`` returns a result for each image."""


class LostError(FailedError):
    """A batch was not generated, because every process that tried ended."""


@runtime_checkable
class Executor(Protocol[Result]):
    """Generates batches of images.

    The store and its claims stay with the caller. An executor takes settings and returns results, all of
    which can be pickled, so it may run in this thread, in one thread per loaded pipeline, or on other
    machines.
    """

    @property
    def capacity(self) -> int:
        """The number of batches that may be submitted before one of them is done."""
        ...

    def load(self, model: str) -> None:
        """Load a model if it is not loaded yet.

        Raises:
            InputError: there is no such model, or its files are damaged.
        """
        ...

    def submit(
        self, model: str, batch: Sequence[GenerationSettings], watch: Watch = ignore
    ) -> Future[list[Result]]:
        """Generate a batch with a model.

        Args:
            model: the model's name.
            batch: the settings of each image; their batch keys must be equal.
            watch: called after each step. An exception that it raises cancels the batch and becomes the
                future's exception.

        Returns:
            A result for each image, in order; or the exception of ``watch`` or of the model, or LostError.
        """
        ...


class Inline(Generic[Result]):
    """An executor that runs in the caller's thread. The last model used stays loaded.

    Args:
        load: loads a model by name, for the duration of the context.
    """

    capacity = 1

    def __init__(self, load: Callable[[str], AbstractContextManager[Render[Result]]]) -> None:
        self._load = load
        self._loaded: tuple[str, Render[Result]] | None = None
        self._model = ExitStack()

    def load(self, model: str) -> None:
        """See ``Executor.load``."""
        self._renderer(model)

    def submit(
        self, model: str, batch: Sequence[GenerationSettings], watch: Watch = ignore
    ) -> Future[list[Result]]:
        """See ``Executor.submit``; the returned future is done. KeyboardInterrupt propagates."""
        render = self._renderer(model)
        future: Future[list[Result]] = Future()
        try:
            future.set_result(render(batch, watch))
        except Exception as error:
            future.set_exception(error)
        return future

    def _renderer(self, model: str) -> Render[Result]:
        if self._loaded is None or self._loaded[0] != model:
            self.close()
            self._loaded = model, self._model.enter_context(self._load(model))
        return self._loaded[1]

    def close(self) -> None:
        """Unload the model."""
        self._loaded = None
        self._model.close()


@contextmanager
def renderer(
    pipeline: Pipeline, measure: Measure, *, share_steps: bool = True, folders: bool = True
) -> Generator[Render[JobResult], None, None]:
    """Provide a function that generates batches with a pipeline. Prompts are encoded once.

    If a batch fails, its images are generated one by one, so that only the failing ones are lost.

    Args:
        pipeline: the model.
        measure: called for each image. Values that are not finite are dropped.
        share_steps: compute denoising steps with equal inputs once, as those from the same noise in a sweep.
            Keeps up to ``memoization.LIMIT`` bytes of outputs.
        folders: recipes say in which folders the files were that an image was generated from.
    """

    def render(batch: Sequence[GenerationSettings], watch: Watch = ignore) -> list[JobResult]:
        all_rows.clear()
        deep_rows.clear()
        try:
            pictures = pipeline.draw(batch, watch)
            passes = _passes(pipeline, batch[0], sum(all_rows), sum(deep_rows)) / len(batch)
            if not folders:
                pictures = [replace(each, recipe=without_folders(each.recipe)) for each in pictures]
            return [_measure(picture, passes, measure) for picture in pictures]
        except (ArithmeticError, InputError, MemoryError, RuntimeError) as error:
            if len(batch) > 1:
                return [result for settings in batch for result in render([settings], watch)]
            message = " ".join(str(error).split()) or type(error).__name__
            return [JobResult.failed(message)]

    unet, text, adapting = pipeline.unet, pipeline.text, pipeline.adapting

    def weights() -> object:
        return adapting and adapting.loras

    with (
        memoize([text.encoder, text.encoder_2], limit=TEXT_LIMIT, weights=weights),
        memoize([unet] if share_steps else [], weights=weights),
        count_rows(unet) as all_rows,
        count_rows(unet.up_blocks[0].resnets[0]) as deep_rows,  # type: ignore[index]
    ):
        yield render


def _passes(pipeline: Pipeline, settings: GenerationSettings, rows: int, deep_rows: int) -> float:
    """Count the UNet passes of a batch, memoized ones included.

    Args:
        pipeline: the model.
        settings: the settings of any image of the batch.
        rows: number of rows that passed through the UNet.
        deep_rows: number of rows that also passed through its coarse levels, which ``feature_reuse`` skips.
    """
    if settings.feature_reuse == 0:
        return float(rows)
    factor = pipeline.layout.vae.factor
    share = deep_share(pipeline.layout.unet, settings.height // factor, settings.width // factor)
    return rows - share * (rows - deep_rows)


def _measure(picture: Picture, passes: float, measure: Measure) -> JobResult:
    metrics = measure(picture.image, picture.recipe.settings.prompt)
    outcome = Outcome(
        state=DONE,
        digest=hashlib.sha256(picture.image.tobytes()).hexdigest(),
        passes=passes,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        thumbnail=thumbnail(picture.image),
    )
    return JobResult(outcome, encode_picture(picture, "png"))


def thumbnail(image: Image.Image) -> bytes:
    """Shrink an image to 16 x 16 RGB pixels, for comparisons without opening image files."""
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()
