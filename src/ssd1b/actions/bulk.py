"""Generate an image for each row of a table, into shards with a manifest."""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ssd1b.actions.lab import Workplace, advise_on_loras, workplace
from ssd1b.actions.loading import AUTO, Loading, Progress, silent
from ssd1b.bulk.rows import Row, count_rows, read_rows
from ssd1b.bulk.shards import Destination, Shard, divide, index_of
from ssd1b.errors import ConflictError, InputError
from ssd1b.files import disk_error, named
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.job import Job, environment, make_job
from ssd1b.lab.sweep import ModelDescription
from ssd1b.saving import check_folder
from ssd1b.settings import RANDOM_SEED, SEEDS, Preset, resolve_settings

LOCK = "bulk.lock"
"""Marks a folder for unfinished images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """The rows to generate images for, their settings, and the destination.

    Attributes:
        rows: see ``bulk.rows.read_rows``.
        out: a folder or a URL of fsspec.
        model: the model's name.
        preset: settings that ``settings`` and the rows override.
        settings: fields of ``GenerationSettings`` for all rows, which a row overrides. Row n without a seed
            has the seed ``settings["seed"] + n``, from 0 if there is none.
        keep: columns that are copied to the manifest.
        shard_size: rows of a shard.
        part: (k, n) takes every n-th shard from the k-th, so that n processes share a table; k is 1 to n.
        form: of ``bulk.shards.FORMATS``.
        arrangement: of ``bulk.shards.ARRANGEMENTS``.
    """

    rows: str
    out: str
    model: str
    preset: Preset | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep: Collection[str] = ()
    shard_size: int = 500
    part: tuple[int, int] = (1, 1)
    form: str = "png"
    arrangement: str = "webdataset"

    def __post_init__(self) -> None:
        """Check the part."""
        k, n = self.part
        if not 1 <= k <= n:
            raise InputError(f"part is {k}/{n}: it must be K/N with K from 1 to N, such as 3/8")


@dataclass(slots=True, kw_only=True)
class Generated:
    """The result of a run.

    Attributes:
        rows: number of rows of the input, in its part.
        failed: number of rows that failed, in this run's shards or in those published before, by reason.
        shards: number of shards that this run wrote, or would write.
        known: number of shards that were published before.
        others: number of published shards at the positions of this part that are not of these rows and
            settings.
    """

    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    known: int = 0
    others: int = 0


def generate_bulk(
    what: Bulk,
    work: Path,
    loading: Loading = AUTO,
    *,
    retry: bool = False,
    dry_run: bool = False,
    advise: Callable[[str], object] = lambda line: None,
    progress: Progress = silent,
) -> Generated:
    """Generate the missing shards. An interrupted run continues where it was, with the same files.

    Args:
        what: rows, settings and destination.
        work: local folder for images of shards that are not complete.
        loading: how the model is found and loaded.
        retry: generate shards with failed rows again.
        dry_run: read and check all rows, and write nothing.
        advise: called with a line for each adapter that does not fit the model as a whole, before it is used.
        progress: shows the share that is done.

    Raises:
        InputError: the rows cannot be read, the model cannot be loaded, the destination refused, or another
            process is writing there.
    """
    if what.settings.get("seed") == RANDOM_SEED:
        raise InputError("seed is -1: a second run could not find random images")
    destination = Destination(what.out, what.arrangement, what.form, what.keep, work)
    k, n = what.part
    published = {name for name in destination.published() if index_of(name) % n == k - 1}
    table = read_rows(what.rows, keep=what.keep)
    table = chain([next(table)], table)  # before anything is written or started: it finds wrong columns
    found, names, said = Generated(), set[str](), set[tuple[str, str]]()
    with ExitStack() as stack:
        if loading.cluster and not dry_run and work.is_dir():
            with _alone(work, what.out):  # now, because a cluster takes half a minute to start
                pass
        place = stack.enter_context(workplace(work, loading, [what.model]))
        if not dry_run:
            stack.enter_context(_alone(work, what.out))
        advance = stack.enter_context(progress("rows", _rows_of_part(what)))
        for shard in _shards(what, table, place):
            name = destination.name(shard)
            names.add(name)
            found.rows += len(shard.rows)
            if name in published:
                failures = destination.failures(name)
                if not (retry and failures):
                    found.known += 1
                    found.failed.update(failures)
                    advance(len(shard.rows))
                    continue
            found.shards += 1
            advise_on_loras(shard.jobs.values(), place.describe, advise, said)
            if dry_run:
                failures = [row.error for row in shard.rows if row.error]
                advance(len(shard.rows))
            else:
                _generate(shard, place, retry=retry, advance=advance)
                failures = destination.publish(shard, place.store)
                place.store.discard(job.key for job in shard.jobs.values())
            found.failed.update(failures)
        found.others = len(published - names)
    return found


def _shards(what: Bulk, table: Iterable[Row], place: Workplace) -> Iterator[Shard]:
    model, runtime = place.describe(what.model), environment(place.device, place.dtype)
    k, n = what.part
    for index, rows in islice(divide(table, what.shard_size), k - 1, None, n):
        jobs: dict[int, Job] = {}
        for position, row in enumerate(rows):
            if row.error is None:
                try:
                    jobs[row.number] = _job(what, row, model, runtime)
                except InputError as error:  # of settings that only together are not allowed
                    rows[position] = row._replace(error=str(error))
        yield Shard(index, rows, jobs)


def _rows_of_part(what: Bulk) -> int | None:
    """Count the rows of a part; None if only reading the table can tell."""
    if (count := count_rows(what.rows)) is None:
        return None
    (k, n), size = what.part, what.shard_size
    return sum(min(size, count - begin) for begin in range((k - 1) * size, count, n * size))


def _job(what: Bulk, row: Row, model: ModelDescription, runtime: Mapping[str, Any]) -> Job:
    seed = (what.settings.get("seed", 0) + row.number) % SEEDS
    settings = resolve_settings(
        row.prompt, family=model.family, model_defaults=model.defaults, preset=what.preset,
        **{**what.settings, "seed": seed, **row.settings},
    )  # fmt: skip
    return make_job(
        what.model, settings, fingerprint=model.fingerprint, tokenizers=model.tokenizers, environment=runtime
    )


def _generate(shard: Shard, place: Workplace, *, retry: bool, advance: Callable[[int], object]) -> None:
    """Generate the images of a shard into the store; equal rows share one."""
    jobs = {job.key: job for job in shard.jobs.values()}
    rows = Counter(job.key for job in shard.jobs.values())
    planned = plan(jobs.values(), place.store, retry=retry)
    draw_jobs(planned, place.store, place.executor, advance=lambda job: advance(rows[job.key]))
    advance(len(shard.rows) - rows.total())


@contextmanager
def _alone(work: Path, out: str) -> Generator[None, None, None]:
    """Let one process at a time write to a destination.

    Raises:
        InputError: another one does, or the folder for unfinished images contains other files: a sweep's
            images would be removed with those that were published.
    """
    check_folder(work)
    lock = work / LOCK
    if not lock.exists() and work.is_dir() and any(work.iterdir()):
        raise ConflictError(
            f"{named(work)} contains files that ssd1b bulk did not write: choose another folder"
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(f"cannot write {named(work)}", error) from None
    try:
        with FileLock(lock, blocking=False):
            lock.touch()  # on some systems it is removed when it is released
            yield
    except Timeout:
        message = f"another process is writing to {named(out)}: wait for it, or choose another --out"
        raise ConflictError(message) from None
