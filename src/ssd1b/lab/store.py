"""Cells on disk: each picture a file, each cell a row in SQLite, and who is drawing which.

A cell is found by the hash of all that decides its picture, so it is drawn once, whichever sweep asks for it.
Several processes on one machine may work in one folder: each holds a lock while it lives, and a cell that was
claimed by one that lives no more is free again.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from ssd1b.errors import InputError
from ssd1b.saving import replacing

FILE = "cells.sqlite"
PICTURES = "pictures"

_TABLES = """
create table if not exists cells (
    key text primary key, state text not null, digest text, passes real, metrics text, error text,
    thumbnail blob
) without rowid;
create table if not exists claims (key text primary key, worker text not null) without rowid;
create table if not exists sweeps (id text primary key, number integer not null, definition text not null);
create table if not exists members (
    sweep text not null, position integer not null, key text not null, places text not null,
    primary key (sweep, position)
) without rowid;
create table if not exists files (path text primary key, state text not null, digest text not null);
"""

SCHEMA = 1
"""Version of the tables, kept in the file. 0, before there were numbers, kept seconds in place of passes."""

_COLUMNS = "state, digest, passes, metrics, error, thumbnail"

DONE, FAILED = "done", "failed"


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
    """

    key: str
    places: tuple[int, ...]
    outcome: Outcome | None


class Store:
    """A folder of cells.

    Args:
        folder: made if need be.

    Raises:
        InputError: the folder cannot be written, or holds a file of that name that is no such store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._worker = uuid4().hex
        try:
            (folder / "workers").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._lock_file(self._worker))
            self._lock.acquire()
            for path in (folder / "workers").glob("*.lock"):
                self._lives(path.stem)  # what a killed process left goes
            self._database = sqlite3.connect(folder / FILE, timeout=60, isolation_level=None)
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = normal")
            self._database.executescript(_TABLES)
            self._upgrade()
        except OSError as error:
            raise InputError(f"cannot write {str(folder)!r}: {error.strerror or error}") from None
        except sqlite3.Error as error:
            raise InputError(f"{folder / FILE} is no store of cells: {error}") from None

    def _upgrade(self) -> None:
        with self._transaction():
            (version,) = self._database.execute("pragma user_version").fetchone()
            columns = [row[1] for row in self._database.execute("pragma table_info(cells)")]
            if version == 0 and "seconds" in columns:
                self._database.execute("alter table cells rename column seconds to passes")
                self._database.execute("update cells set passes = null")
            self._database.execute(f"pragma user_version = {SCHEMA}")

    def close(self) -> None:
        """Give up what this process has claimed."""
        with self._transaction():
            self._database.execute("delete from claims where worker = ?", (self._worker,))
        self._database.close()
        self._lock.release()
        self._lock_file(self._worker).unlink(missing_ok=True)

    def picture(self, key: str) -> Path:
        """Where a cell's picture is, or will be."""
        return self.folder / PICTURES / key[:2] / f"{key}.png"

    def outcomes(self, keys: Iterable[str]) -> dict[str, Outcome]:
        """What is known of cells; those that were never drawn are left out."""
        found = {}
        for key in keys:
            row = self._database.execute(f"select {_COLUMNS} from cells where key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = _outcome(*row)
        return found

    def claim(self, keys: Iterable[str], *, retry: bool = False) -> list[str]:
        """Take cells for this process, those that are neither drawn nor taken by one that lives.

        Args:
            keys: of the cells.
            retry: also those that failed before.

        Returns:
            The keys that were taken.
        """
        with self._transaction():
            taken = [key for key in dict.fromkeys(keys) if self._free(key, retry=retry)]
            rows = [(key, self._worker) for key in taken]
            self._database.executemany("insert or replace into claims values (?, ?)", rows)
        return taken

    def _free(self, key: str, *, retry: bool) -> bool:
        row = self._database.execute("select state from cells where key = ?", (key,)).fetchone()
        if row is not None and not (retry and row[0] == FAILED):
            return False
        claimed = self._database.execute("select worker from claims where key = ?", (key,)).fetchone()
        return claimed is None or not self._lives(claimed[0])

    def finish(self, cells: Iterable[tuple[str, Outcome, bytes | None]]) -> None:
        """Write down what became of claimed cells: first the pictures, then all rows that believe in them.

        Args:
            cells: of each its key, what became of it, and the picture's file if there is one.

        Raises:
            InputError: the disk refused; the cells are free again when this process ends.
        """
        rows = []
        for key, outcome, picture in cells:
            if picture is not None:
                with replacing(self.picture(key), self._unfinished(self._worker)) as aside:
                    aside.write_bytes(picture)
            metrics = None if outcome.metrics is None else json.dumps(outcome.metrics)
            rows.append((
                key, outcome.state, outcome.digest, outcome.passes, metrics, outcome.error, outcome.thumbnail
            ))  # fmt: skip
        try:
            with self._transaction():
                self._database.executemany("insert or replace into cells values (?, ?, ?, ?, ?, ?, ?)", rows)
                self._database.executemany("delete from claims where key = ?", [row[:1] for row in rows])
        except sqlite3.OperationalError as error:
            raise InputError(f"cannot write {self.folder / FILE}: {error}") from None

    def record(
        self, sweep: str, definition: Mapping[str, Any], members: Sequence[tuple[str, tuple[int, ...]]]
    ) -> None:
        """Write down which cells a sweep has, in their order: each one's key, and its places on the axes."""
        rows = [(sweep, number, key, json.dumps(places)) for number, (key, places) in enumerate(members)]
        with self._transaction():
            (number,) = self._database.execute("select coalesce(max(number), 0) + 1 from sweeps").fetchone()
            there = self._database.execute("select 1 from sweeps where id = ?", (sweep,)).fetchone()
            what = (sweep, number, json.dumps(definition))
            self._database.execute("insert or replace into sweeps values (?, ?, ?)", what)
            if there is None:
                self._database.executemany("insert into members values (?, ?, ?, ?)", rows)

    def sweeps(self) -> dict[str, dict[str, Any]]:
        """Definitions by their ids, the one that was run last at the end."""
        rows = self._database.execute("select id, definition from sweeps order by number")
        return {sweep: json.loads(definition) for sweep, definition in rows}

    def members(self, sweep: str) -> Iterator[Member]:
        """A sweep's cells in their order."""
        rows = self._database.execute(
            f"select key, places, {_COLUMNS}"
            " from members left join cells using (key) where sweep = ? order by position",
            (sweep,),
        )
        for key, places, *rest in rows:
            outcome = None if rest[0] is None else _outcome(*rest)
            yield Member(key=key, places=tuple(json.loads(places)), outcome=outcome)

    def file_digest(self, path: Path) -> str:
        """SHA-256 of a file, which may be large; remembered until its size or time changes."""
        about = path.stat()
        state = f"{about.st_size} {about.st_mtime_ns}"
        name = str(path.resolve())
        row = self._database.execute(
            "select digest from files where path = ? and state = ?", (name, state)
        ).fetchone()
        if row is not None:
            return row[0]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        with self._transaction():
            self._database.execute("insert or replace into files values (?, ?, ?)", (name, state, found))
        return found

    def _lives(self, worker: str) -> bool:
        if worker == self._worker:
            return True
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
        self._database.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._database.execute("rollback")
            raise
        self._database.execute("commit")


def _outcome(
    state: str, digest: str | None, passes: float | None, metrics: str | None, error: str | None,
    thumbnail: bytes | None,
) -> Outcome:  # fmt: skip
    told = None if metrics is None else json.loads(metrics)
    return Outcome(state=state, digest=digest, passes=passes, metrics=told, error=error, thumbnail=thumbnail)
