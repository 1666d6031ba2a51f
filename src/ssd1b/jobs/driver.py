"""The driver: claim jobs in the store, submit them to an executor in batches, store their outcomes."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import groupby
from typing import NamedTuple

from ssd1b.jobs.executor import Drawn, Executor
from ssd1b.jobs.job import Job, batches
from ssd1b.jobs.store import FAILED, Store

Advance = Callable[[Job], object]

_WAIT = 0.5
"""Seconds between looks at jobs that other processes are drawing."""


class Plan(NamedTuple):
    """What ``draw_jobs`` would do.

    Attributes:
        jobs: all that are wanted.
        left: keys of those to draw.
        lost: how many were drawn, but their pictures are missing or changed.
    """

    jobs: list[Job]
    left: frozenset[str]
    lost: int

    @property
    def costs(self) -> dict[str, int]:
        """The estimated cost of each job to draw, by key."""
        return {job.key: job.cost for job in self.jobs if job.key in self.left}


def plan(jobs: Iterable[Job], store: Store, *, retry: bool = False) -> Plan:
    """Compare jobs with the store. ``retry`` counts failed jobs as to be drawn."""
    wanted = list(jobs)
    keys = [job.key for job in wanted]
    outcomes = store.outcomes(keys)
    done = {key for key, outcome in outcomes.items() if not (retry and outcome.state == FAILED)}
    return Plan(wanted, frozenset(keys) - done, len(store.lost(keys)))


def draw_jobs(
    jobs: Iterable[Job],
    store: Store,
    executor: Executor,
    *,
    retry: bool = False,
    advance: Advance = lambda job: None,
) -> None:
    """Draw all jobs that are not in the store, and wait for those that other processes are drawing.

    Batches depend on the jobs alone and not on what the store already holds, so that an interrupted run ends
    with the same pictures. A job that fails is stored with the reason, and the others continue.

    Args:
        jobs: those of one model must follow each other.
        store: where the pictures go.
        executor: draws them. A model is loaded only if one of its jobs is to be drawn.
        retry: draw failed jobs again.
        advance: called for each job that is done.

    Raises:
        InputError: a model cannot be loaded, or the disk refused.
    """
    for model, group in groupby(jobs, key=lambda job: job.model):
        left = list(group)
        while left := _draw_free(model, left, store, executor, retry=retry, advance=advance):
            time.sleep(_WAIT)


def _draw_free(
    model: str, jobs: Sequence[Job], store: Store, executor: Executor, *, retry: bool, advance: Advance
) -> list[Job]:
    """Draw the jobs of a model that nobody has claimed; return those that others are drawing."""
    others: list[Job] = []
    running: dict[Future[list[Drawn]], list[Job]] = {}
    try:
        for batch in batches(jobs):
            claimed = _claim(model, batch, store, executor, retry=retry)
            if claimed:
                running[executor.submit(model, [job.settings for job in claimed])] = claimed
            rest = {job.key for job in batch}.difference(job.key for job in claimed)
            known = store.outcomes(rest)
            for job in batch:
                if job.key in known:
                    advance(job)
                elif job.key in rest:
                    others.append(job)
            _finish(running, store, advance, most=executor.capacity - 1)
        _finish(running, store, advance, most=0)
    finally:
        for future in running:
            future.cancel()
    return others


def _claim(model: str, batch: Sequence[Job], store: Store, executor: Executor, *, retry: bool) -> list[Job]:
    by_key = {job.key: job for job in batch}
    if not store.free(by_key, retry=retry):
        return []
    executor.load(model)  # before the claim, so that a model that cannot be loaded leaves no folder
    return [by_key[key] for key in store.claim(by_key, retry=retry)]


def _finish(
    running: dict[Future[list[Drawn]], list[Job]], store: Store, advance: Advance, *, most: int
) -> None:
    """Store outcomes until at most so many batches are running."""
    while len(running) > most:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            claimed = running.pop(future)
            found = zip(claimed, future.result(), strict=True)
            store.finish((job.key, drawn.outcome, drawn.file) for job, drawn in found)
            for job in claimed:
                advance(job)
