"""Run sweeps, tuning and the guide.

A ``Workplace`` combines the store of a folder, the models, their metrics and an executor.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssd1b.actions.cluster import cluster_executor
from ssd1b.actions.loading import AUTO, Loading, Progress, silent
from ssd1b.actions.worlds import WORLDS
from ssd1b.adapters.merging import fit_advice
from ssd1b.cluster.actor import Open
from ssd1b.errors import ConflictError, shown
from ssd1b.files import hash_file
from ssd1b.inputs import with_tables
from ssd1b.jobs.driver import Plan, draw_jobs, plan
from ssd1b.jobs.executor import Executor, Inline, JobResult, Render, renderer
from ssd1b.jobs.job import Job
from ssd1b.jobs.store import Store
from ssd1b.lab.axes import Axis
from ssd1b.lab.claims import Claim, Finding
from ssd1b.lab.evaluator import CellEvaluator, check_budget, make_pairs
from ssd1b.lab.goal import Goal
from ssd1b.lab.guide import EXPERIMENTS, FAULTS, STREAM, Chapter, default_settings, sweep_of, write_guide
from ssd1b.lab.metrics import GroundTruth, captions, make_measure
from ssd1b.lab.results import load_results
from ssd1b.lab.sweep import ModelDescription, Sweep, describe, expand, record
from ssd1b.lab.tune import RIVALS, Tuned, prove, search
from ssd1b.lab.tune_files import open_study, write_tuned
from ssd1b.runtime import DTYPES, choose_device, choose_dtype
from ssd1b.saving import check_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The store and the executor of a folder's jobs.

    Attributes:
        store: of the images and their metrics.
        executor: generates them.
        describe: describes a model by its name.
        device: to generate on.
        dtype: number format of the networks.
    """

    store: Store
    executor: Executor[JobResult]
    describe: Callable[[str], ModelDescription]
    device: torch.device
    dtype: torch.dtype


def ground_truth(model: ModelDescription) -> GroundTruth | None:
    """Return the ground truth of the world that a model declares; None without one that we know."""
    return None if model.world is None else WORLDS.get(model.world)


@contextmanager
def workplace(folder: Path, loading: Loading, models: Iterable[str]) -> Generator[Workplace, None, None]:
    """Open a folder of jobs.

    Args:
        folder: created with the first job.
        loading: how models are found and loaded.
        models: names of those that are used; found before a cluster is started, which takes half a minute.

    Raises:
        InputError: no such model, device or number format, or the folder is no store.
    """
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store(folder)))
        described = cache(partial(_describe, loading, store.file_digest))
        for name in models:
            described(name)
        if loading.cluster is None:
            device = choose_device(loading.device)
            dtype = choose_dtype(loading.dtype, device)
            executor: Executor[JobResult] = stack.enter_context(closing(
                Inline(lambda name: _open(name, described(name).fingerprint, loading, store.file_digest))
            ))  # fmt: skip
        else:
            check_folder(folder)  # now, because a cluster takes half a minute to start
            executor = stack.enter_context(
                cluster_executor(loading.cluster, loading, partial(_open_there, described))
            )
            platform = executor.platform()
            device, dtype = torch.device(platform.device), DTYPES[platform.dtype]
        yield Workplace(store=store, executor=executor, describe=described, device=device, dtype=dtype)


def models_of(model: str, axes: Iterable[Axis]) -> list[str]:
    """Return the names of the models on the axes; that of ``model`` if none of them has models."""
    return [value.model for axis in axes for value in axis.values if value.model is not None] or [model]


def _describe(loading: Loading, file_digest: Callable[[Path], str], name: str) -> ModelDescription:
    return describe(
        name, file_digest, offline=loading.offline, prediction=loading.prediction, networks=loading.networks
    )


def _open(
    name: str, fingerprint: str, loading: Loading, file_digest: Callable[[Path], str]
) -> AbstractContextManager[Render[JobResult]]:
    """Load a model and its metrics, on this machine or on one of a cluster."""
    pipeline, model = loading.load(name), _describe(loading, file_digest, name)
    if model.fingerprint != fingerprint:
        raise ConflictError(f"the files of {shown(name)} are not those that this run began with")
    return renderer(pipeline, make_measure(pipeline, model.path, ground_truth(model)))


def _open_there(described: Callable[[str], ModelDescription], name: str, there: Loading) -> Open[JobResult]:
    return partial(_open, name, described(name).fingerprint, there, hash_file)


def advise_on_loras(
    jobs: Iterable[Job],
    describe: Callable[[str], ModelDescription],
    advise: Callable[[str], object],
    said: set[tuple[str, str]],
) -> None:
    """Say once of each adapter and model that the adapter does not fit as a whole; see ``fit_advice``.

    Args:
        jobs: to be generated.
        describe: describes a model by its name.
        advise: called with each line.
        said: model and SHA-256 of adapters that were looked at; they are added.
    """
    for job in jobs:
        for lora in job.settings.loras:
            layout = describe(job.model).layout
            if layout is None or (key := (job.model, lora.file.sha256)) in said:
                continue
            said.add(key)
            for each in fit_advice([lora], layout, Path(job.model).name):
                advise(each)


def draw_with_progress(plan: Plan, place: Workplace, progress: Progress) -> None:
    """Generate the jobs of a plan, as ``draw_jobs``; progress is by estimated cost."""
    costs = plan.costs
    with progress("cells", sum(costs.values())) as show:

        def advance(job: Job) -> None:
            if cost := costs.pop(job.key, 0):
                show(cost)

        draw_jobs(plan, place.store, place.executor, advance=advance)


class Swept(NamedTuple):
    """The jobs of a sweep, the number of images that exist, and the number of failures by reason."""

    plan: Plan
    images: int
    failures: Counter[str]


def sweep(
    what: Sweep,
    folder: Path,
    loading: Loading = AUTO,
    *,
    retry: bool = False,
    dry_run: bool = False,
    begin: Callable[[Plan], object] = lambda plan: None,
    advise: Callable[[str], object] = lambda line: None,
    progress: Progress = silent,
) -> Swept:
    """Generate and measure the missing cells of a sweep; see ``write_report`` for the results.

    Args:
        what: the sweep.
        folder: for images and metrics; several sweeps can share it.
        loading: how models are found and loaded.
        retry: generate failed cells again.
        dry_run: generate nothing.
        begin: called with the plan before anything is generated.
        advise: called then with a line for each adapter that does not fit a model as a whole.
        progress: shows the share that is done.

    Raises:
        InputError: a model cannot be loaded, a setting is out of range, or a file cannot be written.
    """
    with workplace(folder, loading, models_of(what.model, what.axes)) as place:
        store = place.store
        jobs = expand(what, place.describe, device=place.device, dtype=place.dtype)
        planned = plan(jobs, store, retry=retry)
        begin(planned)
        advise_on_loras(planned.jobs, place.describe, advise, set())
        if not dry_run:
            record(what, planned.jobs, store)
            draw_with_progress(planned, place, progress)
        done = Counter(outcome.error for _, outcome in store.read(planned.left) if outcome is not None)
        counts = planned.known + done
        failures = Counter({reason: count for reason, count in counts.items() if reason is not None})
        return Swept(planned, counts[None], failures)


class TuneResult(NamedTuple):
    """The result of a search, and the paths of the files that were written."""

    tuned: Tuned
    files: list[Path]


def tune(
    model: str,
    axes: Sequence[Axis],
    goal: Goal,
    folder: Path,
    loading: Loading = AUTO,
    *,
    prompts: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    budget: float | None = None,
    trials: int = 60,
    minutes: float | None = None,
    pairs: int = 48,
    fresh: int = 96,
    overwrite: bool = False,
    progress: Progress = silent,
) -> TuneResult:
    """Search combinations of settings, prove the best one on fresh pairs, and write it as a preset.

    Args:
        model: its name.
        axes: the search space, as from ``parse_axis``.
        goal: what to maximise, as from ``read_goal``.
        folder: for images, search and preset. The same call resumes a search.
        loading: how models are found and loaded.
        prompts: if empty, captions of the world that the model declares are used.
        base: settings that all combinations share.
        budget: most UNet forward passes per image.
        trials: number of combinations to try, including earlier ones.
        minutes: time limit, after which no trial begins.
        pairs: number of pairs of prompt and seed for each combination.
        fresh: number of pairs for the proof.
        overwrite: also replace files that no tuning wrote, or that were changed since.
        progress: shows the search and the proof.

    Raises:
        InputError: no combination keeps the budget and the guards, a metric cannot be measured, there are no
            prompts, an image failed, or a file cannot be written.
    """
    base = base or {}
    with workplace(folder, loading, models_of(model, axes)) as place:
        described = place.describe(model)
        first, second = make_pairs(prompts, ground_truth(described), pairs, fresh)
        evaluator = CellEvaluator(
            store=place.store, executor=place.executor, axes=axes, goal=goal, model=model,
            describe=place.describe, base=base, device=place.device, dtype=place.dtype,
        )  # fmt: skip
        if budget is not None:
            check_budget(evaluator, budget)
        what = {"model": described.fingerprint, "pairs": first, "settings": with_tables(base)}
        until = None if minutes is None else time.monotonic() + 60 * minutes
        with progress("search", trials) as advance:
            found = search(
                axes, goal, evaluator, first, study=partial(open_study, folder, axes, goal, what),
                trials=trials, budget=budget, least_passes=evaluator.least_passes, advance=lambda: advance(1),
                keep_going=lambda: until is None or time.monotonic() < until,
            )  # fmt: skip
        with progress("prove", RIVALS + 2) as advance:
            tuned = prove(
                found, goal, evaluator, second, pairs=pairs, budget=budget, advance=lambda: advance(1)
            )
        return TuneResult(tuned, write_tuned(folder, tuned, axes, goal, model, base, overwrite=overwrite))


class GuideResult(NamedTuple):
    """The findings of a guide, in the article's order, and its pages."""

    findings: list[tuple[Claim, Finding]]
    files: list[Path]


def guide(
    model: str,
    folder: Path,
    loading: Loading = AUTO,
    *,
    prompts: Sequence[str] = (),
    pairs: int = 64,
    only: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> GuideResult:
    """Run the guide's experiments, decide its claims, and write its pages.

    Args:
        model: its name.
        folder: for the pages; images go to its ``cells``.
        loading: how models are found and loaded.
        prompts: if empty, captions of the world that the model declares are used.
        pairs: number of pairs of prompt and seed for each value of a setting.
        only: names of ``EXPERIMENTS``; empty for all.
        base: settings of all images.
        overwrite: also replace files of another origin.
        progress: shows the share that is done.

    Raises:
        InputError: a model cannot be loaded, there are no prompts, or a file cannot be written.
    """
    base = base or {}
    chosen = [each for each in EXPERIMENTS if not only or each.name in only]
    with workplace(folder / "cells", loading, [model]) as place:
        store, described = place.store, place.describe(model)
        model_settings, truth = default_settings(described, base), ground_truth(described)
        prompts = prompts or captions(truth, pairs, stream=STREAM)
        countable = truth is not None and truth.faults.issuperset(FAULTS)
        sweeps = {
            each.name: sweep_of(each, prompts, pairs, model=model, model_settings=model_settings, base=base)
            for each in chosen
            if countable or not each.faults
        }
        expanded = {
            name: list(expand(what, place.describe, device=place.device, dtype=place.dtype))
            for name, what in sweeps.items()
        }
        ids = {name: record(sweeps[name], jobs, store) for name, jobs in expanded.items()}
        planned = plan(chain.from_iterable(expanded.values()), store)
        draw_with_progress(planned, place, progress)
        chapters = [
            Chapter(each, load_results(store, ids[each.name]) if each.name in ids else None)
            for each in chosen
        ]
        files = write_guide(
            folder, chapters, store, model=model, model_settings=model_settings, overwrite=overwrite
        )
    return GuideResult([found for each in chapters for found in each.findings(model_settings)], files)
