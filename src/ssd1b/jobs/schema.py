"""The tables of a store: schema, migrations, seals against damage, and SQLite's errors in words."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, OutOfSpaceError, UnavailableError
from ssd1b.files import kind_of, named

FILE = "cells.sqlite"
PICTURES = "pictures"

SCHEMA = 2
"""Version of the tables. The file keeps it as SQLite's ``user_version``."""

_TABLES = {
    "cells": "key text primary key, state text not null, digest text, passes real, metrics text, error text, "
    "thumbnail blob, size integer, time integer, seal blob",
    "claims": "key text primary key, worker text not null",
    "sweeps": "id text primary key, number integer not null, definition text not null, seal blob",
    "members": "sweep text not null, position integer not null, key text not null, places text not null, "
    "primary key (sweep, position)",
    "files": "path text primary key, state text not null, digest text not null",
}
_WITHOUT_ROWID = {"cells", "claims", "members"}

_ALWAYS = {"key", "state", "digest", "metrics", "error", "thumbnail"}
"""Columns of ``cells`` that every version has."""

_MIGRATIONS = (
    # Version 0 kept seconds in place of passes.
    ("alter table cells rename column seconds to passes", "update cells set passes = null"),
    # Version 1 had no seals, and kept neither size nor time of a picture's file.
    (
        "alter table cells add column size integer",
        "alter table cells add column time integer",
        "alter table cells add column seal blob",
        "alter table sweeps add column seal blob",
    ),
)
"""The statements that migrate tables of version 0, 1, ... to the next version."""

_CAUSES = {
    sqlite3.SQLITE_FULL: "no space left on the disk; all that was drawn before is kept, and the same command "
    "goes on when there is space",
    sqlite3.SQLITE_BUSY: "another process has kept it locked for a minute",
    sqlite3.SQLITE_LOCKED: "another process has kept it locked for a minute",
    sqlite3.SQLITE_READONLY: "it may not be written",
    sqlite3.SQLITE_PERM: "it may not be written",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
}
"""Errors that are not due to the file's content."""


def connected(path: Path) -> sqlite3.Connection:
    """Open a store's file, or make it. Tables of an older version are migrated.

    Raises:
        InputError: the file is not a store, is damaged or of a newer version, or the disk refused.
    """
    if path.exists() and (kind := kind_of(path)):
        raise InputError(f"{named(path)} is {kind}: a store of cells keeps its tables in a file of that name")
    with explained(path):
        database = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            version, tables = _version(database), _columns(database)
            _check(path, version, tables)
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = normal")
            if version < SCHEMA:
                _migrate(database, path)
            _check(path, _version(database), _columns(database))
        except BaseException:
            database.close()
            raise
    return database


def in_memory() -> sqlite3.Connection:
    """Make the tables in memory, for a store that has no folder yet."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    _create(database)
    return database


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into messages that say what happened and what to do.

    Raises:
        InputError: SQLite raised an error.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _CAUSES:
            kind = OutOfSpaceError if code == sqlite3.SQLITE_FULL else UnavailableError
            raise kind(f"cannot use {named(path)}: {_CAUSES[code]}") from error
        pictures = named(path.parent / PICTURES)
        raise InputError(
            f"{named(path)} is damaged, or no store of cells ({error}): pictures in {pictures} are files of "
            "their own and keep their recipes; move the damaged file away, and the same command draws again "
            "what it needs"
        ) from error


@contextmanager
def transaction(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Write all or nothing. Other processes wait.

    Raises:
        InputError: as ``explained``.
    """
    with explained(path):
        database.execute("begin immediate")
        try:
            yield
            database.execute("commit")
        except BaseException:
            if database.in_transaction:  # a full disk has ended it already
                database.execute("rollback")
            raise


def sealed(*parts: Any) -> bytes:
    """A short digest of a row, by which damage is detected. SQLite keeps none."""
    return blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def sealed_sweep(definition: Any, members: Iterable[tuple[Any, Any]]) -> bytes:
    """The seal of a sweep: of its definition, and of the key and the places of its members in order."""
    return sealed(definition, *(tuple(member) for member in members))


def _seal(database: sqlite3.Connection) -> None:
    """Seal the rows of a version that had no seals, so that a row without one is a damaged row."""
    rows = database.execute(
        "select key, state, digest, passes, metrics, error, thumbnail from cells"
    ).fetchall()
    database.executemany("update cells set seal = ? where key = ?", [(sealed(*row), row[0]) for row in rows])
    for name, definition in database.execute("select id, definition from sweeps").fetchall():
        select = "select key, places from members where sweep = ? order by position"
        seal = sealed_sweep(definition, database.execute(select, (name,)))
        database.execute("update sweeps set seal = ? where id = ?", (seal, name))


def read_json(text: Any) -> Any:
    """Parse a column of JSON; None if it is damaged."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def _version(database: sqlite3.Connection) -> int:
    return database.execute("pragma user_version").fetchone()[0]


def _columns(database: sqlite3.Connection) -> dict[str, set[str]]:
    names = [name for (name,) in database.execute("select name from sqlite_schema where type = 'table'")]
    return {
        name: {column for (column,) in database.execute("select name from pragma_table_info(?)", (name,))}
        for name in names
        if not name.startswith("sqlite_")
    }


def _check(path: Path, version: int, tables: dict[str, set[str]]) -> None:
    """Refuse a file that is not a store, or of a newer version."""
    if version > SCHEMA:
        raise InputError(
            f"{named(path)} was written by a newer ssd1b (its tables are of version {version}, this one "
            f"knows {SCHEMA}): update ssd1b, or take another folder"
        )
    ours = tables.keys() <= _TABLES.keys() and (not tables or _ALWAYS <= tables.get("cells", set()))
    if version < 0 or not ours:
        raise InputError(f"{named(path)} is no store of cells: take another folder")
    if version == SCHEMA:
        with closing(in_memory()) as expected:
            if tables != _columns(expected):
                raise InputError(
                    f"{named(path)} is damaged, or no store of cells: move it away, or take another one"
                )


def _create(database: sqlite3.Connection) -> None:
    for name, columns in _TABLES.items():
        rows = "without rowid" if name in _WITHOUT_ROWID else ""
        database.execute(f"create table if not exists {name} ({columns}) {rows}")
    database.execute(f"pragma user_version = {SCHEMA}")


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    with transaction(database, path):
        # Another process may have migrated it in the meantime.
        version, there = _version(database), "cells" in _columns(database)
        for statement in (each for step in _MIGRATIONS[version:] for each in step) if there else ():
            database.execute(statement)
        if there and version < SCHEMA:
            _seal(database)
        if version < SCHEMA:
            _create(database)
