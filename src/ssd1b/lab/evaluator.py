"""Evaluation of combinations of settings for tuning: each pair of prompt and seed is a job of the store."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch

from ssd1b.errors import FailedError, InputError
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import Executor, JobResult
from ssd1b.jobs.job import Job, evaluations
from ssd1b.jobs.store import FAILED, Store
from ssd1b.lab.axes import Axis
from ssd1b.lab.goal import Goal
from ssd1b.lab.metrics import GroundTruth, captions
from ssd1b.lab.results import PASSES
from ssd1b.lab.sweep import ModelDescription, Sweep, expand
from ssd1b.lab.tune import Combination, Measurement, Pair, fixed_axes
from ssd1b.settings import GenerationSettings

STREAMS = (10, 11)
"""Caption streams of the search and of the fresh pairs; ``evaluate`` and ``guide`` use others."""

ENOUGH_PROMPTS = 16
"""With at least this many prompts, search and fresh pairs have different prompts; with fewer, only seeds."""

_COMBINATIONS = 10_000
"""Most combinations that are checked against the budget before the search."""

FRESH_SEEDS = 1_000_000


def make_pairs(
    prompts: Sequence[str], truth: GroundTruth | None, pairs: int, fresh: int
) -> tuple[list[Pair], list[Pair]]:
    """Choose the pairs of the search and the fresh pairs for the final comparison.

    Args:
        prompts: if empty, captions of the world are used.
        truth: of the world that the model declares, if any.
        pairs: number of pairs for the search.
        fresh: number of fresh pairs.

    Raises:
        InputError: there are no prompts and no world.
    """
    if not prompts:
        first, second = (
            [(caption, number) for number, caption in enumerate(captions(truth, count, stream=stream))]
            for stream, count in zip(STREAMS, (pairs, fresh), strict=True)
        )
        return first, second
    enough = len(prompts) >= ENOUGH_PROMPTS
    searched, tested = (prompts[::2], prompts[1::2]) if enough else (prompts, prompts)
    return (
        [(searched[number % len(searched)], number) for number in range(pairs)],
        [(tested[number % len(tested)], FRESH_SEEDS + number) for number in range(fresh)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEvaluator:
    """Generates and scores the images of a combination of settings.

    Attributes:
        store: keeps the jobs.
        executor: runs the jobs.
        axes: the search space.
        goal: scores images.
        model: the model's name.
        describe: describes a model by its name.
        base: settings that all combinations share.
        device: where the jobs run.
        dtype: number format of the networks.
    """

    store: Store
    executor: Executor[JobResult]
    axes: Sequence[Axis]
    goal: Goal
    model: str
    describe: Callable[[str], ModelDescription]
    base: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    def __call__(self, combination: Combination | None, pairs: Sequence[Pair]) -> list[Measurement]:
        """Measure the pairs; the first one runs alone, to fail early if the goal cannot be measured.

        Raises:
            InputError: an image failed, or a metric of the goal was not measured.
        """
        return [*self._evaluate(combination, pairs[:1]), *self._evaluate(combination, pairs[1:])]

    def _evaluate(self, combination: Combination | None, pairs: Sequence[Pair]) -> list[Measurement]:
        jobs = [self.job(combination, pair) for pair in pairs]
        draw_jobs(plan(jobs, self.store), self.store, self.executor)
        outcomes = self.store.outcomes(job.key for job in jobs)
        measurements = []
        for job in jobs:
            outcome = outcomes[job.key]
            if outcome.state == FAILED or outcome.passes is None:
                raise FailedError(f"an image of {job.settings.prompt!r:.80} failed: {outcome.error}")
            metrics = {**(outcome.metrics or {}), PASSES: outcome.passes}
            score = self.goal.score(metrics)
            measurements.append(Measurement(score=score, passes=outcome.passes, metrics=metrics))
        return measurements

    def job(self, combination: Combination | None, pair: Pair) -> Job:
        """The job of a pair with a combination."""
        prompt, seed = pair
        sweep = Sweep(
            prompts=(prompt,), axes=fixed_axes(self.axes, combination), model=self.model,
            settings={**self.base, "seed": seed},
        )  # fmt: skip
        (job,) = expand(sweep, self.describe, device=self.device, dtype=self.dtype)
        return job

    def least_passes(self, combination: Combination | None) -> float:
        """The fewest UNet passes that an image can take.

        Exact if guidance covers all steps or none. With ``feature_reuse`` the result is 0, because its
        savings are known only afterwards.
        """
        job = self.job(combination, ("any", 0))
        if job.settings.feature_reuse:
            return 0.0
        embedded = self.describe(job.model).embeds_guidance

        def guided(settings: GenerationSettings) -> bool:
            whole = settings.guidance_interval == (0.0, 1.0)
            return whole and settings.guidance_scale != 1 and not embedded

        runs = job.settings.passes
        return float(sum(evaluations(each, start) * (1 + guided(each)) for each, start in runs))


def check_budget(evaluator: CellEvaluator, budget: float) -> None:
    """Refuse a budget that no combination of the axes can keep.

    Args:
        evaluator: has the axes.
        budget: most UNet passes per image.

    Raises:
        InputError: even the cheapest combination takes more.
    """
    combinations = product(*(range(len(axis.values)) for axis in evaluator.axes))
    least = math.inf
    for combination in (None, *islice(combinations, _COMBINATIONS)):
        least = min(least, evaluator.least_passes(combination))
        if least <= budget:
            return
    if math.prod(len(axis.values) for axis in evaluator.axes) <= _COMBINATIONS:
        raise InputError(
            f"budget is {budget:g} UNet passes: the cheapest settings of these axes take {least:g}"
        )
