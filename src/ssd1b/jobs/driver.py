"""The driver: claims jobs in the store, submits them to an executor in batches, and stores their outcomes."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import groupby
from typing import NamedTuple

from ssd1b.jobs.executor import Executor, JobResult, LostError
from ssd1b.jobs.job import Job, batches
from ssd1b.jobs.store import FAILED, Store

Advance = Callable[[Job], object]

_POLL_SECONDS = 0.5
"""Interval for polling jobs that other processes are running."""


class Plan(NamedTuple):
    """The jobs that ``draw_jobs`` runs.

    Attributes:
        jobs: all requested jobs. Those of one model must be consecutive.
        left: keys of the jobs to run.
        lost: number of jobs that were done, but whose images are missing or changed.
        retry: run failed jobs again.
        known: the number of other jobs, by the reason for which they failed; None counts those with images.
    """

    jobs: list[Job]
    left: frozenset[str]
    lost: int
    retry: bool
    known: Counter[str | None]

    @property
    def costs(self) -> dict[str, int]:
        """The estimated cost of each job to run, by key."""
        return {job.key: job.cost for job in self.jobs if job.key in self.left}


def plan(jobs: Iterable[Job], store: Store, *, retry: bool = False) -> Plan:
    """Compare jobs with the store. With ``retry``, failed jobs are to run again."""
    requested = list(jobs)
    left, lost = {job.key for job in requested}, 0
    known = Counter[str | None]()
    for key, outcome in store.read(job.key for job in requested):
        if outcome is None:
            lost += 1
        elif not (retry and outcome.state == FAILED):
            left.remove(key)
            known[outcome.error] += 1
    return Plan(requested, frozenset(left), lost, retry, known)


def draw_jobs(
    plan: Plan, store: Store, executor: Executor[JobResult], *, advance: Advance = lambda job: None
) -> None:
    """Run the jobs that are left, and wait for those that other processes are running.

    Batches depend on the jobs alone, not on the state of the store, so that an interrupted run ends with the
    same images. A failed job is stored with the reason, and the others continue.

    Args:
        plan: the jobs.
        store: keeps the images.
        executor: runs the jobs. A model is loaded only if one of its jobs is to run.
        advance: called for each job that is done, also for those that were done before.

    Raises:
        InputError: a model cannot be loaded, or the disk refused.
    """
    for model, group in groupby(plan.jobs, key=lambda job: job.model):
        jobs = list(group)
        if plan.left.isdisjoint(job.key for job in jobs):
            for job in jobs:
                advance(job)
            continue
        wanted = batches(jobs)
        while wanted := _draw_free(model, wanted, plan, store, executor, advance):
            time.sleep(_POLL_SECONDS)


def _draw_free(
    model: str,
    wanted: Iterable[list[Job]],
    plan: Plan,
    store: Store,
    executor: Executor[JobResult],
    advance: Advance,
) -> list[list[Job]]:
    """Run the unclaimed jobs of a model; return the batches of those that other processes are running."""
    others: list[list[Job]] = []
    running: dict[Future[list[JobResult]], list[Job]] = {}
    try:
        for batch in wanted:
            left = [job for job in batch if job.key in plan.left]
            claimed = _claim(model, left, store, executor, retry=plan.retry)
            if claimed:
                running[executor.submit(model, [job.settings for job in claimed])] = claimed
            rest = {job.key for job in left}.difference(job.key for job in claimed)
            known = store.outcomes(rest)  # finished by others since the plan
            if elsewhere := [job for job in left if job.key in rest and job.key not in known]:
                others.append(elsewhere)
            for job in batch:
                if job.key in known or job.key not in plan.left:
                    advance(job)
            _finish(running, store, advance, most=executor.capacity - 1)
        _finish(running, store, advance, most=0)
    finally:
        for future in running:
            future.cancel()
    return others


def _claim(
    model: str, batch: Sequence[Job], store: Store, executor: Executor[JobResult], *, retry: bool
) -> list[Job]:
    by_key = {job.key: job for job in batch}
    if not store.free(by_key, retry=retry):
        return []
    executor.load(model)  # before the claim, so that a failure to load leaves no folder behind
    return [by_key[key] for key in store.claim(by_key, retry=retry)]


def _finish(
    running: dict[Future[list[JobResult]], list[Job]], store: Store, advance: Advance, *, most: int
) -> None:
    """Store outcomes until at most ``most`` batches are running."""
    while len(running) > most:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            claimed = running.pop(future)
            pairs = zip(claimed, _results(future, len(claimed)), strict=True)
            store.finish((job.key, result.outcome, result.file) for job, result in pairs)
            for job in claimed:
                advance(job)


def _results(future: Future[list[JobResult]], count: int) -> list[JobResult]:
    """Return the results of a batch; one that was lost counts as failed, and the others continue."""
    try:
        return future.result()
    except LostError as error:
        return [JobResult.failed(str(error))] * count
