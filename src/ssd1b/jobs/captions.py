"""Generation of images from captions, each with its seed, for an evaluation; nothing is stored."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

from ssd1b.batching import batch_key, batches
from ssd1b.evaluate.drawing import Drawn
from ssd1b.jobs.executor import Executor
from ssd1b.model import Model
from ssd1b.progress import progress_bar
from ssd1b.settings import GenerationSettings, Preset, resolve_settings

Task: TypeAlias = tuple[str, int]
"""A caption and a seed."""


def draw_captions(
    model: Model,
    executor: Executor[Drawn],
    tasks: Sequence[Task],
    *,
    batch_size: int,
    label: str = "draw",
    preset: Preset | None = None,
    **settings: Any,
) -> Iterator[Drawn]:
    """Generate images in batches, and yield them in the order of the tasks.

    At most ``executor.capacity`` batches are running, or done and not yielded. Batches depend on the tasks
    alone, not on the executor.

    Args:
        model: the model.
        executor: generates, with ``evaluate.drawing.timed``.
        tasks: captions and seeds. An image does not depend on the others of its batch.
        batch_size: images per batch, fewer where batching would change them.
        label: the label of the progress bar.
        preset: settings by name.
        **settings: any field of ``GenerationSettings`` except prompt and seed.

    Raises:
        InputError: a setting is invalid, the model cannot be loaded, or a batch was lost.
    """
    info, tokenizers = model.info, model.tokenizers
    chosen = [
        resolve_settings(
            caption, family=info.family, model_defaults=info.defaults, preset=preset, seed=seed, **settings
        )
        for caption, seed in tasks
    ]
    places = batches(
        range(len(chosen)),
        key=lambda place: batch_key(chosen[place], tokenizers),
        limit=lambda place: batch_size,
    )
    executor.load(model.name)
    results = _in_order(executor, model.name, ([chosen[place] for place in each] for each in places))
    found: dict[int, Drawn] = {}
    next_place = 0
    with progress_bar(total=len(tasks), label=label, unit="image") as bar:
        for batch, drawn in zip(places, results, strict=True):
            found |= zip(batch, drawn, strict=True)
            while next_place in found:
                yield found.pop(next_place)
                next_place += 1
            bar.update(len(batch))


def _in_order(
    executor: Executor[Drawn], model: str, batches: Iterable[Sequence[GenerationSettings]]
) -> Iterator[list[Drawn]]:
    running: deque[Future[list[Drawn]]] = deque()
    try:
        for batch in batches:
            while len(running) >= executor.capacity:
                yield running.popleft().result()
            running.append(executor.submit(model, batch))
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
