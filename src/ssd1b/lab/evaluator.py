"""What tuning draws: pairs of prompt and seed with a combination of settings, each a job of the store."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch

from ssd1b.errors import FailedError, InputError
from ssd1b.jobs.driver import draw_jobs
from ssd1b.jobs.executor import Executor
from ssd1b.jobs.job import Job
from ssd1b.jobs.store import FAILED, Store
from ssd1b.lab.axes import Axis
from ssd1b.lab.goal import Goal
from ssd1b.lab.metrics import GroundTruth, captions
from ssd1b.lab.results import PASSES
from ssd1b.lab.sweep import Model, Sweep, expand
from ssd1b.lab.tune import Combination, Measured, Pair, single

STREAMS = (10, 11)
"""Of captions for the search and the proof; ``evaluate`` and ``guide`` have their own."""

ENOUGH_PROMPTS = 16
"""With at least as many prompts, the proof has prompts of its own. With fewer, only seeds of its own."""

_COMBINATIONS = 10_000
"""How many combinations are checked against the budget before the search."""

FRESH_SEEDS = 1_000_000


def make_pairs(
    prompts: Sequence[str], truth: GroundTruth | None, pairs: int, fresh: int
) -> tuple[list[Pair], list[Pair]]:
    """Give pairs for the search and for the proof.

    Args:
        prompts: if empty, captions of the world take their place.
        truth: of the world that the model declares, if it declares one.
        pairs: how many for the search.
        fresh: how many for the proof.

    Raises:
        InputError: there are no prompts and no world.
    """
    if not prompts:
        first, second = (
            [(caption, number) for number, caption in enumerate(captions(truth, count, stream=stream))]
            for stream, count in zip(STREAMS, (pairs, fresh), strict=True)
        )
        return first, second
    own, other = (prompts[::2], prompts[1::2]) if len(prompts) >= ENOUGH_PROMPTS else (prompts, prompts)
    return (
        [(own[number % len(own)], number) for number in range(pairs)],
        [(other[number % len(other)], FRESH_SEEDS + number) for number in range(fresh)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEvaluator:
    """Draws pairs with a combination of settings and scores them.

    Attributes:
        store: keeps the jobs.
        executor: draws them.
        axes: what is searched.
        goal: scores pictures.
        model: the model's name.
        known: describes a model by its name.
        base: settings that all combinations share.
        device: where the jobs are drawn.
        dtype: number format of the networks.
    """

    store: Store
    executor: Executor
    axes: Sequence[Axis]
    goal: Goal
    model: str
    known: Callable[[str], Model]
    base: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    def __call__(self, combination: Combination | None, pairs: Sequence[Pair]) -> list[Measured]:
        """Draw what is not in the store. The first pair alone shows whether the goal can be measured.

        Raises:
            InputError: a picture failed, or a metric of the goal was not measured.
        """
        return [*self._evaluate(combination, pairs[:1]), *self._evaluate(combination, pairs[1:])]

    def _evaluate(self, combination: Combination | None, pairs: Sequence[Pair]) -> list[Measured]:
        jobs = [self.job(combination, pair) for pair in pairs]
        draw_jobs(jobs, self.store, self.executor)
        outcomes = self.store.outcomes(job.key for job in jobs)
        measured = []
        for job in jobs:
            outcome = outcomes[job.key]
            if outcome.state == FAILED or outcome.passes is None:
                raise FailedError(f"a picture of {job.settings.prompt!r:.80} failed: {outcome.error}")
            metrics = {**(outcome.metrics or {}), PASSES: outcome.passes}
            score = self.goal.score(metrics)
            measured.append(Measured(score=score, passes=outcome.passes, metrics=metrics))
        return measured

    def job(self, combination: Combination | None, pair: Pair) -> Job:
        """The job of a pair with a combination."""
        prompt, seed = pair
        one = Sweep(
            prompts=(prompt,), axes=() if combination is None else single(self.axes, combination),
            model=self.model, settings={**self.base, "seed": seed},
        )  # fmt: skip
        (job,) = expand(one, self.known, device=self.device, dtype=self.dtype)
        return job


def check_budget(evaluator: CellEvaluator, budget: float, pair: Pair) -> None:
    """Refuse a budget that no combination of the axes can keep.

    Args:
        evaluator: has the axes.
        budget: UNet passes for a picture.
        pair: any.

    Raises:
        InputError: even the cheapest combination takes more.
    """
    combinations = product(*(range(len(axis.values)) for axis in evaluator.axes))
    least = math.inf
    for combination in (None, *islice(combinations, _COMBINATIONS)):
        job = evaluator.job(combination, pair)
        if job.settings.feature_reuse:
            return  # what it saves is known only after drawing
        least = min(least, job.evaluations)
        if least <= budget:
            return
    if math.prod(len(axis.values) for axis in evaluator.axes) <= _COMBINATIONS:
        raise InputError(
            f"budget is {budget:g} passes of the UNet: the cheapest settings of these axes take {least:g}"
        )
