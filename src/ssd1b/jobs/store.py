"""Jobs on disk: an image file and an SQLite row for each job, and the claims of running processes.

A job, which users know as a cell, is found by its key, so its image is generated once, whichever sweep
requests it. Several processes on one machine may share a folder. Each holds a lock while it runs; the claims
of a dead process are void.

A job counts as done while its row is undamaged and its image file is unchanged. Size and modification time
are compared, and the pixels if these differ. The folder is created when the first job is claimed, so that a
command that is refused leaves nothing behind.
"""

import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from PIL import Image

from ssd1b.errors import InputError, shown
from ssd1b.files import disk_error, hash_file, named
from ssd1b.jobs.schema import (
    FILE,
    PICTURES,
    connect,
    explain_errors,
    in_memory,
    open_read_only,
    read_json,
    row_checksum,
    sweep_checksum,
    transaction,
)
from ssd1b.saving import check_folder, replacing

CHANGED = "changed"
"""Folder for images modified by the user, which are moved here before their jobs run again."""

DONE, FAILED = "done", "failed"

_MIN_AGE = 2 * 10**9
"""Nanoseconds since a file's last change before its digest is cached, because a second change within the
clock's resolution would not change the times."""

_ROWS_PER_QUERY = 500

_COLUMNS = "state, digest, passes, metrics, error, thumbnail, size, time, seal"
_INSERT = f"insert or replace into cells (key, {_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a job. Attributes of the image are None if the job failed.

    Attributes:
        state: ``DONE`` or ``FAILED``.
        digest: SHA-256 of the image's pixels.
        passes: UNet passes that the image took. Unlike seconds, they do not depend on the machine's load.
        metrics: measured values by name.
        error: the reason for a failure, otherwise None.
        thumbnail: see ``executor.thumbnail``.
    """

    state: str
    digest: str | None = None
    passes: float | None = None
    metrics: Mapping[str, float] | None = None
    error: str | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A job of a sweep.

    Attributes:
        key: the job's key.
        places: the index of the job's value on each axis.
        outcome: None if the job is not done.
        lost: whether the job was done, but its image is missing or changed, or its row is damaged.
    """

    key: str
    places: tuple[int, ...]
    outcome: Outcome | None
    lost: bool = False


class Store:
    """A folder of jobs.

    Args:
        folder: created when the first job is claimed.

    Raises:
        InputError: the folder cannot be written and holds no store, or its ``cells.sqlite`` is not a store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._worker = uuid4().hex
        self._lock: FileLock | None = None
        exists = os.path.lexists(self._file)
        if exists and not os.access(folder, os.W_OK):
            self._database = open_read_only(self._file)
            return
        check_folder(folder)
        if exists:
            self._open()
        else:
            self._database = in_memory()

    @property
    def _file(self) -> Path:
        return self.folder / FILE

    def _open(self) -> None:
        """Take this worker's lock and open the tables. Create the folder if necessary."""
        try:
            (self.folder / "workers").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._lock_file(self._worker))
            self._lock.acquire()
            for path in (self.folder / "workers").glob("*.lock"):
                self._is_alive(path.stem)  # removes the files of a killed process
            self._database = connect(self._file)
        except OSError as error:
            self._release()
            raise disk_error(f"cannot write {named(error.filename or self.folder)}", error) from None
        except InputError:
            self._release()
            raise

    def _persist(self) -> None:
        """Create the folder and write the tables that were kept in memory until now."""
        if self._lock is not None:
            return
        memory = self._database
        sweeps = [(name, content, [*self._places(name)]) for name, content in self.sweeps().items()]
        self._open()
        for name, content, members in sweeps:
            self.record(name, content, members)
        with self._transaction():
            rows = memory.execute("select path, state, digest from files")
            self._database.executemany("insert or replace into files values (?, ?, ?)", rows)
        memory.close()

    def close(self) -> None:
        """Release this process's claims and close the tables."""
        if self._lock is not None:
            # If the disk is full or the table locked, the claims become void with this process's lock.
            with suppress(InputError), explain_errors(self._file):
                self._database.execute("pragma busy_timeout = 1000")
            with suppress(InputError), self._transaction():
                self._database.execute("delete from claims where worker = ?", (self._worker,))
        with suppress(InputError), explain_errors(self._file):
            self._database.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            with suppress(OSError):
                self._lock_file(self._worker).unlink(missing_ok=True)

    def picture(self, key: str) -> Path:
        """The path of a job's image, whether or not it exists.

        Raises:
            InputError: the key is damaged and could point outside the folder.
        """
        return Path(self._path(key))

    def _path(self, key: str) -> str:
        # As text, because a Path takes longer to make than to look up.
        if not key.isalnum():
            raise InputError(f"{named(self._file)} contains the key {shown(key)}, which is not valid")
        return f"{self.folder}/{PICTURES}/{key[:2]}/{key}.png"

    def outcomes(self, keys: Iterable[str]) -> dict[str, Outcome]:
        """The outcomes of jobs by key, without jobs that are not done or whose images are lost."""
        return {key: outcome for key, outcome in self.read(keys) if outcome is not None}

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, Outcome | None]]:
        """Yield the outcomes of jobs, without holding all of them. Jobs that never were done are left out.

        The outcome is None if the job's image is missing or was changed, or its row is damaged.
        """
        return ((key, self._outcome(key, row)) for key, row in self._rows(keys) if row is not None)

    def _rows(self, keys: Iterable[str]) -> Iterator[tuple[str, tuple[Any, ...] | None]]:
        """Yield the row of each key, or None, in the order in which the keys first occur."""
        names = list(dict.fromkeys(keys))
        for start in range(0, len(names), _ROWS_PER_QUERY):
            chunk = names[start : start + _ROWS_PER_QUERY]
            select = f"select key, {_COLUMNS} from cells where key in ({', '.join('?' * len(chunk))})"
            with explain_errors(self._file):
                found = {row[0]: row[1:] for row in self._database.execute(select, chunk)}
            yield from ((key, found.get(key)) for key in chunk)

    def _outcome(self, key: str, row: tuple[Any, ...], *, verify: bool = False) -> Outcome | None:
        """A row's outcome; None if the row is damaged or its image is lost."""
        outcome = _parse_row(key, row)
        if outcome is None or not outcome.digest:
            return outcome
        return outcome if self._is_intact(key, outcome.digest, row[6:8], verify=verify) else None

    def _is_intact(self, key: str, digest: str, recorded: tuple[Any, ...], *, verify: bool) -> bool:
        now = _size_and_time(self._path(key))
        if now is None:
            return False
        unchanged = recorded[0] is None or now == recorded  # None: from a version that recorded no sizes
        if unchanged and not verify:
            return True
        same = pixels_digest(self.picture(key)) == digest
        if now != recorded or not same:
            # Avoids comparing the pixels again; no file has a size of -1.
            with self._transaction():
                self._database.execute(
                    "update cells set size = ?, time = ? where key = ?", (*(now if same else (-1, -1)), key)
                )
        return same

    def free(self, keys: Iterable[str], *, retry: bool = False) -> list[str]:
        """Keys that ``claim`` would return now."""
        return [key for key in dict.fromkeys(keys) if self._is_free(key, retry=retry)]

    def claim(self, keys: Iterable[str], *, retry: bool = False) -> list[str]:
        """Claim for this process the jobs that are neither done nor claimed by a running process.

        Args:
            keys: keys of the jobs.
            retry: claim failed jobs, too.

        Returns:
            The keys that were claimed.

        Raises:
            InputError: the folder cannot be written.
        """
        self._persist()
        taken = self.free(keys, retry=retry)
        with self._transaction():
            taken = [key for key in taken if self._is_free(key, retry=retry)]
            rows = [(key, self._worker) for key in taken]
            self._database.executemany("insert or replace into claims values (?, ?)", rows)
        return taken

    def release(self, keys: Iterable[str]) -> None:
        """Give up this process's claims to jobs that it will not finish.

        Raises:
            InputError: the folder cannot be written.
        """
        with self._transaction():
            rows = [(key, self._worker) for key in keys]
            self._database.executemany("delete from claims where key = ? and worker = ?", rows)

    def _is_free(self, key: str, *, retry: bool) -> bool:
        known = self.outcomes([key]).get(key)
        if known is not None and not (retry and known.state == FAILED):
            return False
        with explain_errors(self._file):
            claimed = self._database.execute("select worker from claims where key = ?", (key,)).fetchone()
        return claimed is None or not self._is_alive(claimed[0])

    def finish(self, jobs: Iterable[tuple[str, Outcome, bytes | None]]) -> None:
        """Store the outcomes of claimed jobs: first the images, then the rows that reference them.

        Args:
            jobs: the key, the outcome, and the image file's bytes or None, for each job.

        Raises:
            InputError: the disk refused. The jobs are free again when this process ends.
        """
        self._persist()
        rows = []
        for key, outcome, picture in jobs:
            saved = None if picture is None else self._write(key, outcome, picture)
            metrics = None if outcome.metrics is None else json.dumps(outcome.metrics)
            row = (key, outcome.state, outcome.digest, outcome.passes, metrics, outcome.error)
            rows.append((
                *row, outcome.thumbnail, *(saved or (None, None)), row_checksum(*row, outcome.thumbnail),
            ))  # fmt: skip
        with self._transaction():
            self._database.executemany(_INSERT, rows)
            self._database.executemany("delete from claims where key = ?", [row[:1] for row in rows])

    def discard(self, keys: Iterable[str]) -> None:
        """Forget finished jobs, and remove the images that were generated for them.

        Images that were changed since are kept. Jobs of recorded sweeps would be generated again.

        Raises:
            InputError: the disk refused.
        """
        rows = [(key, row) for key, row in self._rows(keys) if row is not None]
        with self._transaction():
            self._database.executemany("delete from cells where key = ?", [(key,) for key, _ in rows])
        for key, row in rows:
            path = self.picture(key)
            if _size_and_time(path) == row[6:8]:
                try:
                    path.unlink()
                except OSError as error:
                    raise disk_error(f"cannot remove {named(path)}", error) from None

    def _write(self, key: str, outcome: Outcome, picture: bytes) -> tuple[int, int] | None:
        path = self.picture(key)
        if os.path.lexists(path) and pixels_digest(path) != outcome.digest:
            self._move_aside(path)
        with replacing(path, self._unfinished(self._worker)) as aside:
            aside.write_bytes(picture)
        return _size_and_time(path)

    def _move_aside(self, path: Path) -> None:
        """Move a file that this process did not write to ``CHANGED``; it may be the user's work."""
        kept = self.folder / CHANGED / f"{path.stem}-{uuid4().hex[:8]}{path.suffix}"
        try:
            kept.parent.mkdir(exist_ok=True)
            path.rename(kept)
        except OSError as error:
            raise disk_error(f"cannot move {named(path)} away", error) from None

    def record(
        self, sweep: str, definition: Mapping[str, Any], members: Sequence[tuple[str, tuple[int, ...]]]
    ) -> None:
        """Store a sweep under an id: its definition, and its jobs in order with their places on the axes.

        Raises:
            InputError: the disk refused.
        """
        rows = [(sweep, number, key, json.dumps(places)) for number, (key, places) in enumerate(members)]
        text = json.dumps(definition)
        seal = sweep_checksum(text, ((key, places) for _, _, key, places in rows))
        with self._transaction():
            (number,) = self._database.execute("select coalesce(max(number), 0) + 1 from sweeps").fetchone()
            self._database.execute(
                "insert or replace into sweeps (id, number, definition, seal) values (?, ?, ?, ?)",
                (sweep, number, text, seal),
            )
            self._database.execute("delete from members where sweep = ?", (sweep,))
            self._database.executemany("insert into members values (?, ?, ?, ?)", rows)

    def sweeps(self) -> dict[str, Any]:
        """The definitions of all sweeps by id, in the order of their last run. A damaged one is None."""
        with explain_errors(self._file):
            rows = self._database.execute("select id, definition from sweeps order by number").fetchall()
        return {str(sweep): read_json(definition) for sweep, definition in rows}

    def members(self, sweep: str, *, verify: bool = False) -> Iterator[Member]:
        """The jobs of a sweep, in order.

        Args:
            sweep: the sweep's id.
            verify: compare the pixels of every image, even if size and time are unchanged.

        Raises:
            InputError: the sweep's rows are damaged.
        """
        places = list(self._places(sweep))
        for start in range(0, len(places), _ROWS_PER_QUERY):
            chunk = places[start : start + _ROWS_PER_QUERY]
            rows = dict(self._rows(key for key, _ in chunk))
            for key, place in chunk:  # different combinations can be the same image
                row = rows[key]
                outcome = None if row is None else self._outcome(key, row, verify=verify)
                yield Member(key=key, places=place, outcome=outcome, lost=row is not None and outcome is None)

    def _places(self, sweep: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        with explain_errors(self._file):
            select = "select definition, seal from sweeps where id = ?"
            definition, seal = self._database.execute(select, (sweep,)).fetchone()
            select = "select key, places from members where sweep = ? order by position"
            rows = self._database.execute(select, (sweep,)).fetchall()
        if seal != sweep_checksum(definition, rows):
            raise self.damaged(sweep)
        for key, text in rows:
            places = read_json(text)
            if not isinstance(key, str) or not isinstance(places, list):
                raise self.damaged(sweep)
            yield key, tuple(places)

    def damaged(self, sweep: str) -> InputError:
        """The error for a sweep whose rows are damaged."""
        return InputError(
            f"sweep {shown(sweep)} in {named(self._file)} is damaged, or from another version of ssd1b; "
            "other sweeps, cells and images are not affected. Running the same ssd1b sweep records it again"
        )

    def check(self) -> None:
        """Run SQLite's integrity check on the file.

        Raises:
            InputError: it is damaged.
        """
        with explain_errors(self._file):
            found = [row[0] for row in self._database.execute("pragma integrity_check(1)")]
            if found != ["ok"]:
                raise sqlite3.DatabaseError(" ".join(str(found[0]).split()))

    def file_digest(self, path: Path) -> str:
        """SHA-256 of a file, cached until the file's size, times or inode change.

        A change that alters none of these goes unnoticed. This can happen on a file system without change
        times (FAT), or after the clock was set back.
        """
        name, state = str(path.resolve()), _state(path)
        with explain_errors(self._file):
            row = self._database.execute(
                "select digest from files where path = ? and state = ?", (name, state)
            ).fetchone()
        if row is not None:
            return str(row[0])
        before = time.time_ns()
        found = hash_file(path)
        status = path.stat()
        if max(status.st_mtime_ns, status.st_ctime_ns) + _MIN_AGE < before:
            with self._transaction():
                self._database.execute("insert or replace into files values (?, ?, ?)", (name, state, found))
        return found

    def _is_alive(self, worker: str) -> bool:
        if worker == self._worker:
            return True
        if not str(worker).isalnum():  # damaged, and could point outside the folder
            return False
        lock = FileLock(self._lock_file(worker))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        self._unfinished(worker).unlink(missing_ok=True)
        lock.release()
        self._lock_file(worker).unlink(missing_ok=True)
        return False

    def _lock_file(self, worker: str) -> Path:
        return self.folder / "workers" / f"{worker}.lock"

    def _unfinished(self, worker: str) -> Path:
        """Where a worker writes an image before it is moved into place."""
        return self.folder / "workers" / f"{worker}.png"

    @contextmanager
    def _transaction(self) -> Generator[None, None, None]:
        if self._database.in_transaction:  # nested
            yield
            return
        with transaction(self._database, self._file):
            yield


def pixels_digest(path: Path) -> str | None:
    """SHA-256 of an image's pixels; None if the file is not an image."""
    try:
        if not path.is_file():
            return None
        with Image.open(path) as image:
            return hashlib.sha256(image.tobytes()).hexdigest()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _size_and_time(path: str | Path) -> tuple[int, int] | None:
    """A file's size and modification time; None if there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _state(path: Path) -> str:
    """Attributes that change when a file is changed or replaced."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_dev}:{status.st_ino}"


def _parse_row(key: str, row: tuple[Any, ...]) -> Outcome | None:
    """Parse a row of ``_COLUMNS``; None if it is damaged."""
    state, digest, passes, metrics, error, thumbnail, _, _, seal = row
    if seal != row_checksum(key, state, digest, passes, metrics, error, thumbnail):
        return None
    values = read_json(metrics)
    if state not in (DONE, FAILED) or not (metrics is None or isinstance(values, dict)):
        return None
    if not all(each is None or _is_finite(each) for each in (passes, *(values or {}).values())):
        return None
    kinds = ((digest, str), (error, str), (thumbnail, bytes))
    if not all(each is None or isinstance(each, kind) for each, kind in kinds):
        return None
    return Outcome(
        state=state, digest=digest, passes=passes, metrics=values, error=error, thumbnail=thumbnail
    )


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300
