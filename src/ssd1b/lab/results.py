"""A sweep's figures as arrays, one axis of the array for each axis of the sweep, and what they say."""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ssd1b.errors import InputError, NotFoundError, unknown
from ssd1b.evaluate.statistics import Estimate, estimates
from ssd1b.lab.axes import Axis
from ssd1b.lab.goal import unmeasured
from ssd1b.lab.store import DONE, Store
from ssd1b.lab.sweep import PROMPT, THUMBNAIL, Sweep, restored

SEED, STEPS = "seed", "steps"

PASSES = "passes"
"""Of the UNet, for a picture. Seconds are no measure: a sweep draws one value after the other, so they would
show how busy the machine was at the time."""
DIVERSITY = "diversity"
"""How far a picture lies from those of other seeds, everything else being equal, in units of their contrast:
else whatever drives colours apart, as much guidance does, would pass for diversity."""
UNCONVERGED = "unconverged"
"""How far it lies from the picture with the most steps, everything else being equal."""

QUALITIES = ("flawless", "right", "pickscore", "clip")
"""What tells a good picture, the more trustworthy first."""

EMPTY = "(empty)"
"""How an empty text is shown, which a negative prompt may be."""

ENOUGH_PROMPTS = 8
"""From so many prompts on intervals speak of prompts at large; with fewer, of these prompts' seeds."""

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What is known of a sweep's cells.

    Attributes:
        sweep: what was asked for.
        keys: of the cells, an array with one axis for each of ``axes``.
        metrics: arrays of the same shape by name, NaN where nothing is known. Beside what was measured of
            each picture: ``PASSES``, ``DIVERSITY`` and ``UNCONVERGED``, root mean square distances of
            thumbnails, the latter in levels of 256.
        drawn: which cells are, an array of the same shape.
        failures: how many cells failed, by the reason.
        missing: how many are not drawn, the lost ones among them.
        lost: how many were drawn, but their pictures are gone or were changed since.
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
        """In the order of the arrays' axes."""
        return self.sweep.all_axes

    @cached_property
    def setting_axes(self) -> tuple[int, ...]:
        """Places of the axes that are settings: neither prompt nor seed."""
        return tuple(n for n, axis in enumerate(self.axes) if axis.name not in (PROMPT, SEED))

    @cached_property
    def many_prompts(self) -> bool:
        """Whether intervals are over prompts; else they are over pairs of prompt and seed."""
        return len(self.sweep.prompts) >= ENOUGH_PROMPTS

    @property
    def quality(self) -> str | None:
        """The best metric of quality that was measured."""
        return next((name for name in QUALITIES if name in self.metrics), None)

    def key(self, places: tuple[int, ...]) -> str:
        """Of the cell at a place."""
        return self.keys[places]  # type: ignore[return-value]

    def labels(self, places: tuple[int, ...]) -> dict[str, str]:
        """What the values at a place are called, by their axes."""
        found = zip(self.axes, places, strict=True)
        return {axis.name: axis.values[place].label or EMPTY for axis, place in found}

    @property
    def told(self) -> list[str]:
        """Metrics of which something is known; those that judge first, then those that only describe."""
        known = [name for name, values in self.metrics.items() if not np.isnan(values).all()]
        first = [name for name in (*QUALITIES, PASSES, DIVERSITY, UNCONVERGED) if name in known]
        return [*first, *(name for name in known if name not in first)]

    def units(self, metric: str, kept: tuple[int, ...]) -> Values:
        """Values that are independent of each other, for each place on some axes.

        Args:
            metric: a key of ``metrics``.
            kept: places of setting axes; the other settings are averaged.

        Returns:
            The kept axes in their order, and behind them one of units.

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
        """Means with their intervals for each place on the kept axes, the last one running fastest."""
        values = self.units(metric, kept)
        return estimates(values.reshape(-1, values.shape[-1]))

    def front(self, metric: str) -> NDArray[np.bool_]:
        """Which settings no other one beats in both the metric's mean and passes: the Pareto front.

        Returns:
            One entry for each place on ``setting_axes``, flattened.
        """
        quality = np.array([each.mean for each in self.estimates(metric, self.setting_axes)])
        passes = np.array([each.mean for each in self.estimates(PASSES, self.setting_axes)])
        better = (quality >= quality[:, None]) & (passes <= passes[:, None])
        strictly = (quality > quality[:, None]) | (passes < passes[:, None])
        known = ~np.isnan(quality) & ~np.isnan(passes)
        return known & ~(better & strictly).any(axis=1)


def load_results(store: Store, sweep: str | None = None, *, verify: bool = False) -> Results:
    """Read a sweep's figures.

    Args:
        store: where it is.
        sweep: the beginning of its id; None is the one that was run last.
        verify: examine the whole store, and read every picture whether it is still the one that was measured.

    Raises:
        InputError: there is no such sweep, its rows are damaged, or no cell of it is drawn.
    """
    if verify:
        store.check()
    name, what = _chosen(store, sweep)
    shape = tuple(len(axis.values) for axis in what.all_axes)
    keys = np.empty(shape, object)
    measured: dict[str, Values] = defaultdict(lambda: np.full(shape, np.nan))
    thumbnails = np.full((*shape, THUMBNAIL * THUMBNAIL * 3), np.nan, np.float32)
    drawn = np.zeros(shape, bool)
    failures: Counter[str] = Counter()
    missing = lost = 0
    members = list(store.members(name, verify=verify))
    if [member.places for member in members] != [*np.ndindex(shape)]:
        raise store.damaged(name)
    for member in members:
        keys[member.places] = member.key
        outcome = member.outcome
        if outcome is None:
            missing += 1
            lost += member.lost
        elif outcome.state != DONE:
            failures[outcome.error or ""] += 1
        else:
            drawn[member.places] = True
            for name, value in {PASSES: outcome.passes, **(outcome.metrics or {})}.items():
                measured[name][member.places] = value
            form = np.frombuffer(outcome.thumbnail or b"", np.uint8)
            if form.size == thumbnails.shape[-1]:
                thumbnails[member.places] = form
    if not drawn.any():
        gone = f" ({lost} were drawn, but their pictures are gone or were changed)" if lost else ""
        raise InputError(
            f"nothing of this sweep is drawn: {missing} cells are missing{gone}, {failures.total()} failed"
        )
    return Results(
        sweep=what, keys=keys, metrics={**measured, **_compared(what, thumbnails)}, drawn=drawn,
        failures=failures, missing=missing, lost=lost,
    )  # fmt: skip


def _chosen(store: Store, sweep: str | None) -> tuple[str, Sweep]:
    known = store.sweeps()
    if not known:
        raise NotFoundError(f"{store.folder} holds no sweep yet: draw one with ssd1b sweep")
    chosen = [*known][-1:] if sweep is None else [each for each in known if each.startswith(sweep)]
    if len(chosen) != 1:
        raise unknown("sweep", sweep or "", known, NotFoundError)
    try:
        return chosen[0], restored(known[chosen[0]])
    except InputError as error:
        raise store.damaged(chosen[0]) from error


def _compared(sweep: Sweep, thumbnails: NDArray[np.float32]) -> dict[str, Values]:
    """What pictures differ from each other in."""
    found = {}
    for place, axis in enumerate(sweep.all_axes):
        if len(axis.values) == 1:
            continue
        moved = np.moveaxis(thumbnails, place, -2)
        if axis.name == SEED:
            found[DIVERSITY] = np.moveaxis(_from_others(moved), -1, place)
        elif axis.name == STEPS:
            most = int(np.argmax([value.settings[STEPS] for value in axis.values]))
            found[UNCONVERGED] = np.moveaxis(_from_one(moved, most), -1, place)
    return found


def _from_others(pictures: NDArray[np.float32]) -> Values:
    """Mean distance of each of ``[..., n, pixels]`` from the other n - 1, over the mean contrast of all n."""
    products = pictures @ pictures.swapaxes(-1, -2)
    squares = np.diagonal(products, axis1=-2, axis2=-1)
    apart = squares[..., :, None] + squares[..., None, :] - 2 * products
    distances = np.sqrt(np.maximum(apart, 0) / pictures.shape[-1]).astype(np.float64)
    places = np.arange(distances.shape[-1])
    distances[..., places, places] = np.nan
    contrast = pictures.std(axis=-1).mean(axis=-1, keepdims=True)
    return _mean(distances) / np.where(contrast > 0, contrast, np.nan)


def _from_one(pictures: NDArray[np.float32], one: int) -> Values:
    """Distance of each of ``[..., n, pixels]`` from one of them, which itself is left out."""
    others = np.square(pictures - pictures[..., one : one + 1, :]).mean(axis=-1)
    distances = np.sqrt(others).astype(np.float64)
    distances[..., one] = np.nan
    return distances


def _mean(values: Values) -> Values:
    """Over the last axis, of what is known; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(values, axis=-1)
