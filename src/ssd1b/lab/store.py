"""Cells on disk: each picture a file, each cell a row in SQLite, and who is drawing which.

A cell is found by the hash of all that decides its picture, so it is drawn once, whichever sweep asks for it.
Several processes on one machine may work in one folder: each holds a lock while it lives, and a cell that was
claimed by one that lives no more is free again.

A cell is drawn as long as its row is whole and its picture is the file that was written: size and time are
compared, and where they differ the pixels. A folder is made when the first cell is claimed, so that a command
that is refused leaves nothing.
"""

import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from PIL import Image

from ssd1b.errors import InputError, shown
from ssd1b.files import disk_error, named, open_regular
from ssd1b.lab.tables import FILE, PICTURES, connected, explained, in_memory, read_json, sealed, transaction
from ssd1b.saving import check_folder, replacing

CHANGED = "changed"
"""Folder for pictures that somebody changed, and that would be in the way of those that are drawn again."""

DONE, FAILED = "done", "failed"

_SETTLED = 2 * 10**9
"""Nanoseconds for which a file must have been left alone before its digest is remembered: a change within the
clock's resolution would not show in its times."""

_AT_ONCE = 500
"""Rows that are asked for in one statement."""

_COLUMNS = "state, digest, passes, metrics, error, thumbnail, size, time, seal"
_INSERT = f"insert or replace into cells (key, {_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a cell.

    Attributes:
        state: ``DONE`` or ``FAILED``.
        digest: of the picture's pixels; metrics: by name. None if it failed.
        passes: of the UNet that the picture took, each for one picture. Unlike seconds, they do not depend on
            what else the machine did meanwhile.
        error: why it failed, else None.
        thumbnail: of the picture, see ``sweep.thumbnail``; None if it failed.
    """

    state: str
    digest: str | None = None
    passes: float | None = None
    metrics: Mapping[str, float] | None = None
    error: str | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A cell's place in a sweep.

    Attributes:
        key: of the cell.
        places: which value of each axis it has.
        outcome: None while it is not drawn.
        lost: it was drawn, but its picture is gone or was changed, or its row is damaged.
    """

    key: str
    places: tuple[int, ...]
    outcome: Outcome | None
    lost: bool = False


class Store:
    """A folder of cells.

    Args:
        folder: made when the first cell is claimed.

    Raises:
        InputError: the folder cannot be written, or holds a file of that name that is no such store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._worker = uuid4().hex
        self._lock: FileLock | None = None
        check_folder(folder)
        if os.path.lexists(self._file):
            self._open()
        else:
            self._database = in_memory()

    @property
    def _file(self) -> Path:
        return self.folder / FILE

    def _open(self) -> None:
        """Take a worker's lock and open the tables; the folder is made if need be."""
        try:
            (self.folder / "workers").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._lock_file(self._worker))
            self._lock.acquire()
            for path in (self.folder / "workers").glob("*.lock"):
                self._lives(path.stem)  # what a killed process left goes
            self._database = connected(self._file)
        except OSError as error:
            self._release()
            raise disk_error(f"cannot write {named(self.folder)}", error) from None
        except InputError:
            self._release()
            raise

    def _settle(self) -> None:
        """Make the folder, and take over what was noted down in memory until now."""
        if self._lock is not None:
            return
        noted, sweeps = (
            self._database,
            [(name, told, [*self._places(name)]) for name, told in self.sweeps().items()],
        )
        self._open()
        for name, told, members in sweeps:
            self.record(name, told, members)
        with self._transaction():
            rows = noted.execute("select path, state, digest from files")
            self._database.executemany("insert or replace into files values (?, ?, ?)", rows)
        noted.close()

    def close(self) -> None:
        """Give up what this process has claimed."""
        if self._lock is not None:
            # Where the disk is full, the claims end with this process's lock.
            with suppress(InputError), self._transaction():
                self._database.execute("delete from claims where worker = ?", (self._worker,))
        with suppress(InputError), explained(self._file):
            self._database.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            with suppress(OSError):
                self._lock_file(self._worker).unlink(missing_ok=True)

    def picture(self, key: str) -> Path:
        """Where a cell's picture is, or will be.

        Raises:
            InputError: the key is none, and could lead out of the folder.
        """
        if not key.isalnum():
            raise InputError(f"{named(self._file)} holds the key {shown(key)}, which is none")
        return self.folder / PICTURES / key[:2] / f"{key}.png"

    def outcomes(self, keys: Iterable[str]) -> dict[str, Outcome]:
        """What is known of cells; those that were never drawn, or are lost, are left out."""
        found = {key: self._outcome(key, row) for key, row in self._rows(keys)}
        return {key: outcome for key, outcome in found.items() if outcome is not None}

    def lost(self, keys: Iterable[str]) -> list[str]:
        """Cells that were drawn, but whose pictures are gone or were changed, or whose rows are damaged."""
        return [key for key, row in self._rows(keys) if self._outcome(key, row) is None]

    def _rows(self, keys: Iterable[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        names = list(dict.fromkeys(keys))
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            select = f"select key, {_COLUMNS} from cells where key in ({', '.join('?' * len(some))})"
            with explained(self._file):
                found = {row[0]: row[1:] for row in self._database.execute(select, some)}
            yield from ((key, found[key]) for key in some if key in found)

    def _outcome(self, key: str, row: tuple[Any, ...], *, verify: bool = False) -> Outcome | None:
        """What a row says; None where it is damaged, or its picture is no longer the one it speaks of."""
        outcome = _read(key, row)
        if outcome is None or not outcome.digest:
            return outcome
        return outcome if self._is_whole(key, outcome.digest, row[6:8], verify=verify) else None

    def _is_whole(self, key: str, digest: str, about: tuple[Any, ...], *, verify: bool) -> bool:
        path = self.picture(key)
        now = _about(path)
        if now is None:
            return False
        if about[0] is None or now == about:  # None: written before sizes were kept
            if not verify:
                return True
        same = pixels_digest(path) == digest
        if now != about or not same:
            # Next time size and time tell; those of a changed picture match none.
            with self._transaction():
                self._database.execute(
                    "update cells set size = ?, time = ? where key = ?", (*(now if same else (-1, -1)), key)
                )
        return same

    def free(self, keys: Iterable[str], *, retry: bool = False) -> list[str]:
        """Cells that ``claim`` would take just now."""
        return [key for key in dict.fromkeys(keys) if self._is_free(key, retry=retry)]

    def claim(self, keys: Iterable[str], *, retry: bool = False) -> list[str]:
        """Take cells for this process, those that are neither drawn nor taken by one that lives.

        Args:
            keys: of the cells.
            retry: also those that failed before.

        Returns:
            The keys that were taken.

        Raises:
            InputError: the folder cannot be written.
        """
        self._settle()
        taken = self.free(keys, retry=retry)
        with self._transaction():
            taken = [key for key in taken if self._is_free(key, retry=retry)]
            rows = [(key, self._worker) for key in taken]
            self._database.executemany("insert or replace into claims values (?, ?)", rows)
        return taken

    def _is_free(self, key: str, *, retry: bool) -> bool:
        known = self.outcomes([key]).get(key)
        if known is not None and not (retry and known.state == FAILED):
            return False
        with explained(self._file):
            claimed = self._database.execute("select worker from claims where key = ?", (key,)).fetchone()
        return claimed is None or not self._lives(claimed[0])

    def finish(self, cells: Iterable[tuple[str, Outcome, bytes | None]]) -> None:
        """Write down what became of claimed cells: first the pictures, then all rows that believe in them.

        Args:
            cells: of each its key, what became of it, and the picture's file if there is one.

        Raises:
            InputError: the disk refused; the cells are free again when this process ends.
        """
        self._settle()
        rows = []
        for key, outcome, picture in cells:
            about = None if picture is None else self._write(key, outcome, picture)
            metrics = None if outcome.metrics is None else json.dumps(outcome.metrics)
            row = (key, outcome.state, outcome.digest, outcome.passes, metrics, outcome.error)
            rows.append((
                *row, outcome.thumbnail, *(about or (None, None)), sealed(*row, outcome.thumbnail),
            ))  # fmt: skip
        with self._transaction():
            self._database.executemany(_INSERT, rows)
            self._database.executemany("delete from claims where key = ?", [row[:1] for row in rows])

    def _write(self, key: str, outcome: Outcome, picture: bytes) -> tuple[int, int] | None:
        path = self.picture(key)
        if os.path.lexists(path) and pixels_digest(path) != outcome.digest:
            self._keep(path)
        with replacing(path, self._unfinished(self._worker)) as aside:
            aside.write_bytes(picture)
        return _about(path)

    def _keep(self, path: Path) -> None:
        """Move away what stands in a picture's place: it may be somebody's work."""
        kept = self.folder / CHANGED / f"{path.stem}-{uuid4().hex[:8]}{path.suffix}"
        try:
            kept.parent.mkdir(exist_ok=True)
            path.rename(kept)
        except OSError as error:
            raise disk_error(f"cannot move {named(path)} away", error) from None

    def record(
        self, sweep: str, definition: Mapping[str, Any], members: Sequence[tuple[str, tuple[int, ...]]]
    ) -> None:
        """Write down which cells a sweep has, in their order: each one's key, and its places on the axes.

        Raises:
            InputError: the disk refused.
        """
        rows = [(sweep, number, key, json.dumps(places)) for number, (key, places) in enumerate(members)]
        what = json.dumps(definition)
        seal = _sweep_seal(what, ((key, places) for _, _, key, places in rows))
        with self._transaction():
            (number,) = self._database.execute("select coalesce(max(number), 0) + 1 from sweeps").fetchone()
            self._database.execute(
                "insert or replace into sweeps (id, number, definition, seal) values (?, ?, ?, ?)",
                (sweep, number, what, seal),
            )
            self._database.execute("delete from members where sweep = ?", (sweep,))
            self._database.executemany("insert into members values (?, ?, ?, ?)", rows)

    def sweeps(self) -> dict[str, Any]:
        """Definitions by their ids, the one that was run last at the end; None for one that is damaged."""
        with explained(self._file):
            rows = self._database.execute("select id, definition from sweeps order by number").fetchall()
        return {str(sweep): read_json(definition) for sweep, definition in rows}

    def members(self, sweep: str, *, verify: bool = False) -> Iterator[Member]:
        """A sweep's cells in their order.

        Args:
            sweep: its id.
            verify: read every picture, also where size and time are as they were.

        Raises:
            InputError: the sweep's rows are damaged.
        """
        places = dict(self._places(sweep))
        rows = dict(self._rows(places))
        for key, place in places.items():
            outcome = self._outcome(key, rows[key], verify=verify) if key in rows else None
            yield Member(key=key, places=place, outcome=outcome, lost=key in rows and outcome is None)

    def _places(self, sweep: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        with explained(self._file):
            select = "select definition, seal from sweeps where id = ?"
            definition, seal = self._database.execute(select, (sweep,)).fetchone()
            select = "select key, places from members where sweep = ? order by position"
            rows = self._database.execute(select, (sweep,)).fetchall()
        if seal is not None and seal != _sweep_seal(definition, rows):
            raise self.damaged(sweep)
        for key, text in rows:
            places = read_json(text)
            if not isinstance(key, str) or not isinstance(places, list):
                raise self.damaged(sweep)
            yield key, tuple(places)

    def damaged(self, sweep: str) -> InputError:
        """What to say of a sweep whose rows cannot be read."""
        return InputError(
            f"sweep {shown(sweep)} in {named(self._file)} is damaged, or of another version of ssd1b: "
            "other sweeps, cells and pictures are not; the same ssd1b sweep writes it down again"
        )

    def check(self) -> None:
        """Have SQLite examine the whole file.

        Raises:
            InputError: it is damaged.
        """
        with explained(self._file):
            found = [row[0] for row in self._database.execute("pragma integrity_check(1)")]
            if found != ["ok"]:
                raise sqlite3.DatabaseError(" ".join(str(found[0]).split()))

    def file_digest(self, path: Path) -> str:
        """SHA-256 of a file, which may be large; remembered until its size, times or inode change.

        Not found out is only a change that leaves all of them as they were, on a disk that keeps no time of a
        file's last change (FAT), or by a clock that was set back.
        """
        name, state = str(path.resolve()), _state(path)
        with explained(self._file):
            row = self._database.execute(
                "select digest from files where path = ? and state = ?", (name, state)
            ).fetchone()
        if row is not None:
            return str(row[0])
        before = time.time_ns()
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        about = path.stat()
        if max(about.st_mtime_ns, about.st_ctime_ns) + _SETTLED < before:
            with self._transaction():
                self._database.execute("insert or replace into files values (?, ?, ?)", (name, state, found))
        return found

    def _lives(self, worker: str) -> bool:
        if worker == self._worker:
            return True
        if not str(worker).isalnum():  # damaged, and it could lead out of the folder
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
        """Where a picture is written before it is moved into its place."""
        return self.folder / "workers" / f"{worker}.png"

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._database.in_transaction:  # within another one
            yield
            return
        with transaction(self._database, self._file):
            yield


def pixels_digest(path: Path) -> str | None:
    """SHA-256 of a picture's pixels; None where there is no picture."""
    try:
        if not path.is_file():
            return None
        with Image.open(path) as image:
            return hashlib.sha256(image.tobytes()).hexdigest()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _about(path: Path) -> tuple[int, int] | None:
    """A file's size and time of change; None where there is none."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return None
    return (about.st_size, about.st_mtime_ns) if stat.S_ISREG(about.st_mode) else None


def _state(path: Path) -> str:
    """What shows that a file was changed or replaced, without reading it."""
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_dev}:{about.st_ino}"


def _sweep_seal(definition: Any, members: Iterable[tuple[Any, Any]]) -> bytes:
    return sealed(definition, *(tuple(member) for member in members))


def _read(key: str, row: tuple[Any, ...]) -> Outcome | None:
    """A row of ``_COLUMNS`` as an outcome; None where it is damaged."""
    state, digest, passes, metrics, error, thumbnail, _, _, seal = row
    if seal is not None and seal != sealed(key, state, digest, passes, metrics, error, thumbnail):
        return None
    told = read_json(metrics)
    if state not in (DONE, FAILED) or not (metrics is None or isinstance(told, dict)):
        return None
    if not all(each is None or _is_finite(each) for each in (passes, *(told or {}).values())):
        return None
    kinds = ((digest, str), (error, str), (thumbnail, bytes))
    if not all(each is None or isinstance(each, kind) for each, kind in kinds):
        return None
    return Outcome(state=state, digest=digest, passes=passes, metrics=told, error=error, thumbnail=thumbnail)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300
