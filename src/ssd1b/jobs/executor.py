"""Executors: where batches of settings become pictures, measured and ready to be stored."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image

from ssd1b.errors import InputError
from ssd1b.evaluate.cost import counted, deep_share
from ssd1b.images import Picture, encode_picture
from ssd1b.jobs.memoization import memoized
from ssd1b.jobs.store import DONE, FAILED, Outcome
from ssd1b.pipeline import Pipeline, Watch, ignore
from ssd1b.settings import GenerationSettings

THUMBNAIL = 16
"""Pixels on a side."""

Measure = Callable[[Image.Image, str], Mapping[str, float]]
"""``measure(picture, prompt)``: metrics by name."""


class Drawn(NamedTuple):
    """The outcome of a job, and the picture as the bytes of a PNG file; None if the job failed."""

    outcome: Outcome
    file: bytes | None


Render = Callable[[Sequence[GenerationSettings], Watch], list[Drawn]]
"""``render(batch, watch)``: a result for each picture."""


@runtime_checkable
class Executor(Protocol):
    """Draws batches.

    The store and its claims stay with the caller. An executor gets settings and gives outcomes, which can all
    be pickled, so it may draw in this thread, in one thread for each loaded pipeline, or on other machines.
    """

    @property
    def capacity(self) -> int:
        """How many batches may be submitted before one of them is done."""
        ...

    def load(self, model: str) -> None:
        """Load a model unless it is loaded.

        Raises:
            InputError: there is no such model, or its files are damaged.
        """
        ...

    def submit(
        self, model: str, batch: Sequence[GenerationSettings], watch: Watch = ignore
    ) -> Future[list[Drawn]]:
        """Draw a batch with a model.

        Args:
            model: the model's name.
            batch: the settings of each picture; their batch keys must be equal.
            watch: called after each step. An exception that it raises cancels the drawing and becomes the
                future's exception.

        Returns:
            A result for each picture, in order.
        """
        ...


class Inline:
    """An executor that draws at once, in the caller's thread. The model used last stays loaded.

    Args:
        load: opens a model by its name for as long as the context lasts.
    """

    capacity = 1

    def __init__(self, load: Callable[[str], AbstractContextManager[Render]]) -> None:
        self._load = load
        self._loaded: tuple[str, Render] | None = None
        self._model = ExitStack()

    def load(self, model: str) -> None:
        """See ``Executor.load``."""
        self._renderer(model)

    def submit(
        self, model: str, batch: Sequence[GenerationSettings], watch: Watch = ignore
    ) -> Future[list[Drawn]]:
        """See ``Executor.submit``; the future is done. Ctrl-C is not caught."""
        render = self._renderer(model)
        future: Future[list[Drawn]] = Future()
        try:
            future.set_result(render(batch, watch))
        except Exception as error:
            future.set_exception(error)
        return future

    def _renderer(self, model: str) -> Render:
        if self._loaded is None or self._loaded[0] != model:
            self.close()
            self._loaded = model, self._model.enter_context(self._load(model))
        return self._loaded[1]

    def close(self) -> None:
        """Unload the model."""
        self._loaded = None
        self._model.close()


@contextmanager
def renderer(pipeline: Pipeline, measure: Measure) -> Iterator[Render]:
    """Give what draws batches with a pipeline. Work that batches share is done once.

    If a batch fails, its pictures are drawn one by one, so that only those at fault fail.

    Args:
        pipeline: the model.
        measure: called for each picture. Values that are not finite are left out.
    """

    def render(batch: Sequence[GenerationSettings], watch: Watch = ignore) -> list[Drawn]:
        whole.clear()
        deep.clear()
        try:
            pictures = pipeline.draw(batch, watch)
            passes = _passes(pipeline, batch[0], sum(whole), sum(deep)) / len(batch)
            return [_measured(picture, passes, measure) for picture in pictures]
        except (ArithmeticError, InputError, MemoryError, RuntimeError) as error:
            if len(batch) > 1:
                return [drawn for settings in batch for drawn in render([settings], watch)]
            message = " ".join(str(error).split()) or type(error).__name__
            return [Drawn(Outcome(state=FAILED, error=message), None)]

    unet, text = pipeline.unet, pipeline.text
    with (
        memoized([unet, text.encoder, text.encoder_2]),
        counted(unet) as whole,
        counted(unet.up_blocks[0].resnets[0]) as deep,  # type: ignore[index]
    ):
        yield render


def _passes(pipeline: Pipeline, settings: GenerationSettings, whole: int, deep: int) -> float:
    """UNet passes that a batch took, memoized ones included.

    Args:
        pipeline: the model.
        settings: of any picture of the batch.
        whole: how many rows passed through the UNet.
        deep: how many of them passed also through its deep levels, which ``feature_reuse`` skips.
    """
    if settings.feature_reuse == 0:
        return float(whole)
    factor = pipeline.layout.vae.factor
    share = deep_share(pipeline.layout.unet, settings.height // factor, settings.width // factor)
    return whole - share * (whole - deep)


def _measured(picture: Picture, passes: float, measure: Measure) -> Drawn:
    metrics = measure(picture.image, picture.recipe.settings.prompt)
    outcome = Outcome(
        state=DONE,
        digest=hashlib.sha256(picture.image.tobytes()).hexdigest(),
        passes=passes,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        thumbnail=thumbnail(picture.image),
    )
    return Drawn(outcome, encode_picture(picture, "png"))


def thumbnail(image: Image.Image) -> bytes:
    """Shrink a picture to RGB pixels, 16 x 16, by which pictures are compared without opening their files."""
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()
