"""The metrics of a sweep as arrays, with one array axis for each axis of the sweep."""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from ssd1b.errors import InputError, NotFoundError, unknown
from ssd1b.evaluate.statistics import Estimate, estimates
from ssd1b.jobs.executor import THUMBNAIL
from ssd1b.jobs.store import DONE, Store
from ssd1b.lab.axes import Axis
from ssd1b.lab.goal import unmeasured
from ssd1b.lab.sweep import PROMPT, Sweep, parse_definition

SEED, STEPS = "seed", "steps"

PASSES = "passes"
"""UNet passes per image. Seconds are not recorded: a sweep runs one value after the other, so they would
reflect the machine's load at the time."""
DIVERSITY = "diversity"
"""Distance of an image from those of other seeds, all else being equal, in units of their contrast. Otherwise
the saturated colours of high guidance would count as diversity."""
UNCONVERGED = "unconverged"
"""Distance of an image from the one with the most steps, all else being equal."""

QUALITIES = ("flawless", "right", "pickscore", "clip")
"""Metrics of quality, the most reliable first."""

EMPTY = "(empty)"
"""Shown in place of an empty text, such as an empty negative prompt."""

ENOUGH_PROMPTS = 8
"""With at least this many prompts, intervals hold for prompts in general; with fewer, for these only."""

_BLOCK = 10_000
"""Number of thumbnails that are compared at once: 30 MB."""

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The outcomes of a sweep's jobs.

    Attributes:
        sweep: its definition.
        keys: the keys of the jobs, an array with one axis for each of ``axes``.
        metrics: by name, arrays of the same shape, NaN where unknown: what was measured on each image,
            ``PASSES``, ``DIVERSITY`` and ``UNCONVERGED``. The last two are root mean square distances of
            thumbnails, ``UNCONVERGED`` in levels of 256.
        drawn: which jobs are done, an array of the same shape.
        failures: number of failed jobs, by reason.
        missing: number of jobs that are not done, lost ones included.
        lost: number of jobs that were done, but whose images are missing or changed.
    """

    sweep: Sweep
    keys: NDArray[np.object_]
    metrics: Mapping[str, Values]
    drawn: NDArray[np.bool_]
    failures: Mapping[str, int]
    missing: int
    lost: int

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The sweep's axes, in the order of the arrays' axes."""
        return self.sweep.all_axes

    @cached_property
    def setting_axes(self) -> tuple[int, ...]:
        """Indices of the axes that are neither prompt nor seed."""
        return tuple(n for n, axis in enumerate(self.axes) if axis.name not in (PROMPT, SEED))

    @cached_property
    def many_prompts(self) -> bool:
        """Whether intervals are computed over prompts; otherwise over pairs of prompt and seed."""
        return len(self.sweep.prompts) >= ENOUGH_PROMPTS

    @property
    def quality(self) -> str | None:
        """The most reliable metric of quality that was measured, if any."""
        return next((name for name in QUALITIES if name in self.metrics), None)

    def key(self, places: tuple[int, ...]) -> str:
        """The key of the job at a place."""
        return self.keys[places]  # type: ignore[return-value]

    def labels(self, places: tuple[int, ...]) -> dict[str, str]:
        """The labels of the values at a place, by axis name."""
        found = zip(self.axes, places, strict=True)
        return {axis.name: axis.values[place].label or EMPTY for axis, place in found}

    @property
    def known_metrics(self) -> list[str]:
        """Metrics with at least one known value; quality, cost and distances come first."""
        known = [name for name, values in self.metrics.items() if not np.isnan(values).all()]
        first = [name for name in (*QUALITIES, PASSES, DIVERSITY, UNCONVERGED) if name in known]
        return [*first, *(name for name in known if name not in first)]

    def units(self, metric: str, kept: tuple[int, ...]) -> Values:
        """Average a metric within each independent unit, for each place on some axes.

        Args:
            metric: a key of ``metrics``.
            kept: indices of setting axes. Other settings are averaged.

        Returns:
            An array with the kept axes, in order, and a last axis of units.

        Raises:
            InputError: no such metric.
        """
        if metric not in self.metrics:
            raise unmeasured(metric, self.metrics)
        values = self.metrics[metric]
        units = (PROMPT,) if self.many_prompts else (PROMPT, SEED)
        over = tuple(n for n, axis in enumerate(self.axes) if axis.name in units)
        averaged = tuple(n for n in range(values.ndim) if n not in (*kept, *over))
        moved = values.transpose(*kept, *over, *averaged)
        shape = moved.shape[: len(kept)]
        return _mean(moved.reshape(*shape, math.prod(values.shape[n] for n in over), -1))

    def estimates(self, metric: str, kept: tuple[int, ...]) -> list[Estimate]:
        """Means with intervals for each place on the kept axes; the last axis varies fastest."""
        values = self.units(metric, kept)
        return estimates(values.reshape(-1, values.shape[-1]))

    def front(self, metric: str) -> NDArray[np.bool_]:
        """Compute the Pareto front in a metric's mean and in passes.

        Returns:
            For each place on ``setting_axes``, flattened, whether it is on the front.
        """
        quality = np.array([each.mean for each in self.estimates(metric, self.setting_axes)])
        passes = np.array([each.mean for each in self.estimates(PASSES, self.setting_axes)])
        better = (quality >= quality[:, None]) & (passes <= passes[:, None])
        strictly = (quality > quality[:, None]) | (passes < passes[:, None])
        known = ~np.isnan(quality) & ~np.isnan(passes)
        return known & ~(better & strictly).any(axis=1)


def load_results(store: Store, sweep: str | None = None, *, verify: bool = False) -> Results:
    """Load the outcomes of a sweep's jobs.

    Args:
        store: contains the sweep.
        sweep: the beginning of its id; None selects the last one that was run.
        verify: check the whole store and compare the pixels of every image.

    Raises:
        InputError: there is no such sweep, its rows are damaged, or none of its jobs is done.
    """
    if verify:
        store.check()
    name, definition = _find_sweep(store, sweep)
    shape = tuple(len(axis.values) for axis in definition.all_axes)
    keys = np.empty(shape, object)
    measured: dict[str, Values] = defaultdict(lambda: np.full(shape, np.nan))
    thumbnails = np.zeros((*shape, THUMBNAIL * THUMBNAIL * 3), np.uint8)
    has_thumbnail = np.zeros(shape, bool)
    drawn = np.zeros(shape, bool)
    failures: Counter[str] = Counter()
    missing = lost = 0
    for member, places in zip_longest(store.members(name, verify=verify), np.ndindex(shape)):
        if member is None or member.places != places:
            raise store.damaged(name)
        keys[member.places] = member.key
        outcome = member.outcome
        if outcome is None:
            missing += 1
            lost += member.lost
        elif outcome.state != DONE:
            failures[outcome.error or ""] += 1
        else:
            drawn[member.places] = True
            for metric, value in {PASSES: outcome.passes, **(outcome.metrics or {})}.items():
                measured[metric][member.places] = value
            thumbnail = np.frombuffer(outcome.thumbnail or b"", np.uint8)
            if thumbnail.size == thumbnails.shape[-1]:
                thumbnails[member.places] = thumbnail
                has_thumbnail[member.places] = True
    if not drawn.any():
        note = f" (of {lost} the image was deleted or modified)" if lost else ""
        raise InputError(
            f"no cell of this sweep is done: {missing} cells are missing{note}, {failures.total()} failed"
        )
    return Results(
        sweep=definition, keys=keys, drawn=drawn, failures=failures, missing=missing, lost=lost,
        metrics={**measured, **_distances(definition, thumbnails, has_thumbnail)},
    )  # fmt: skip


def _find_sweep(store: Store, sweep: str | None) -> tuple[str, Sweep]:
    known = store.sweeps()
    if not known:
        raise NotFoundError(f"{store.folder} contains no sweep yet: run one with ssd1b sweep")
    chosen = [*known][-1:] if sweep is None else [each for each in known if each.startswith(sweep)]
    if len(chosen) != 1:
        raise unknown("sweep", sweep or "", known, NotFoundError)
    try:
        return chosen[0], parse_definition(known[chosen[0]])
    except InputError as error:
        raise store.damaged(chosen[0]) from error


def _distances(sweep: Sweep, thumbnails: NDArray[np.uint8], known: NDArray[np.bool_]) -> dict[str, Values]:
    """Compute the metrics that compare images with each other."""
    found = {}
    for place, axis in enumerate(sweep.all_axes):
        if len(axis.values) == 1:
            continue
        if axis.name == SEED:
            found[DIVERSITY] = _along(place, thumbnails, known, _mean_distances)
        elif axis.name == STEPS:
            most = int(np.argmax([value.settings[STEPS] for value in axis.values]))
            found[UNCONVERGED] = _along(place, thumbnails, known, partial(_distances_from, reference=most))
    return found


def _along(
    axis: int,
    thumbnails: NDArray[np.uint8],
    known: NDArray[np.bool_],
    distances: Callable[[NDArray[np.float32]], Values],
) -> Values:
    """Apply a function to the thumbnails along an axis, in blocks: all of them are large as float32."""
    indices = np.moveaxis(np.arange(known.size).reshape(known.shape), axis, -1)
    lines = indices.reshape(-1, known.shape[axis])
    pixels, found = thumbnails.reshape(known.size, -1), np.empty(known.size)
    step = max(1, _BLOCK // lines.shape[1])
    for start in range(0, len(lines), step):
        block = lines[start : start + step]
        images = pixels[block].astype(np.float32)
        images[~known.ravel()[block]] = np.nan
        found[block] = distances(images)
    return found.reshape(known.shape)


def _mean_distances(images: NDArray[np.float32]) -> Values:
    """Mean distance of each of ``[..., n, pixels]`` from the other n - 1, over the mean contrast of all n."""
    products = images @ images.swapaxes(-1, -2)
    norms = np.diagonal(products, axis1=-2, axis2=-1)
    squares = norms[..., :, None] + norms[..., None, :] - 2 * products
    distances = np.sqrt(np.maximum(squares, 0) / images.shape[-1]).astype(np.float64)
    places = np.arange(distances.shape[-1])
    distances[..., places, places] = np.nan
    contrast = images.std(axis=-1).mean(axis=-1, keepdims=True)
    return _mean(distances) / np.where(contrast > 0, contrast, np.nan)


def _distances_from(images: NDArray[np.float32], reference: int) -> Values:
    """Distance of each of ``[..., n, pixels]`` from the one at ``reference``, which gets NaN."""
    squares = np.square(images - images[..., reference : reference + 1, :]).mean(axis=-1)
    distances = np.sqrt(squares).astype(np.float64)
    distances[..., reference] = np.nan
    return distances


def _mean(values: Values) -> Values:
    """Mean of the known values over the last axis; NaN if there are none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(values, axis=-1)
