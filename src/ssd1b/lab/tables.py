"""The tables of a store: schema and versions, seals against damage, and what SQLite's errors mean."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, OutOfSpaceError, UnavailableError
from ssd1b.files import kind_of, named

FILE = "cells.sqlite"
PICTURES = "pictures"

SCHEMA = 2
"""Version of the tables, kept in the file as SQLite's ``user_version``."""

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
"""Columns of ``cells`` in every version."""

_UPGRADES = (
    # Version 0 kept the seconds that drawing had taken.
    ("alter table cells rename column seconds to passes", "update cells set passes = null"),
    # Version 1 had no seals, and did not know how large a picture's file had been.
    (
        "alter table cells add column size integer",
        "alter table cells add column time integer",
        "alter table cells add column seal blob",
        "alter table sweeps add column seal blob",
    ),
)
"""Each brings the tables to the next version."""

_CAUSES = {
    sqlite3.SQLITE_FULL: "no space left on the disk; all that was drawn before is kept, and the same command "
    "goes on when there is space",
    sqlite3.SQLITE_BUSY: "another process has kept it locked for a minute",
    sqlite3.SQLITE_LOCKED: "another process has kept it locked for a minute",
    sqlite3.SQLITE_READONLY: "it may not be written",
    sqlite3.SQLITE_PERM: "it may not be written",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
}
"""What is wrong when the file itself is not."""


def connected(path: Path) -> sqlite3.Connection:
    """Open a store's file, or make it; tables of an older version are brought up to date.

    Raises:
        InputError: it is no store of cells, of a newer version, damaged, or the disk refused.
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
                _upgrade(database, path)
            _check(path, _version(database), _columns(database))
        except BaseException:
            database.close()
            raise
    return database


def in_memory() -> sqlite3.Connection:
    """The tables of a store that is not written yet."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    _create(database)
    return database


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of SQLite's errors what happened, and what can still be used.

    Raises:
        InputError: in their place.
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
    """Write all or nothing; one process at a time.

    Raises:
        InputError: SQLite refused, see ``explained``.
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
    """A short digest of a row, by which damage to it is found: SQLite has none of its own."""
    return blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def read_json(text: Any) -> Any:
    """What a column of JSON holds; None where it is damaged."""
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
    """Find a file that is somebody else's, or of a version that is unknown here."""
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


def _upgrade(database: sqlite3.Connection, path: Path) -> None:
    with transaction(database, path):
        # Another process may have done it meanwhile.
        version, there = _version(database), "cells" in _columns(database)
        for statement in (each for step in _UPGRADES[version:] for each in step) if there else ():
            database.execute(statement)
        if version < SCHEMA:
            _create(database)
