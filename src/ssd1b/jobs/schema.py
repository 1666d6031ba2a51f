"""The tables of a store: schema, migrations, checksums of rows, and explanations of SQLite's errors."""

import json
import shutil
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ssd1b.errors import InputError, OutOfSpaceError, UnavailableError
from ssd1b.files import kind_of, named, reason

FILE = "cells.sqlite"
PICTURES = "pictures"

SCHEMA = 2
"""Version of the tables, stored as SQLite's ``user_version``."""

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

_MIGRATIONS = (
    # Version 0 had seconds in place of passes.
    ("alter table cells rename column seconds to passes", "update cells set passes = null"),
    # Version 1 had no seals, and neither size nor time of image files.
    (
        "alter table cells add column size integer",
        "alter table cells add column time integer",
        "alter table cells add column seal blob",
        "alter table sweeps add column seal blob",
    ),
)
"""The statements that migrate tables of version 0, 1, ... to the next version."""

_CAUSES = {
    sqlite3.SQLITE_FULL: "no space left on the disk; finished cells are kept, and the same command resumes "
    "when there is space",
    sqlite3.SQLITE_BUSY: "another process has locked it for 20 seconds",
    sqlite3.SQLITE_LOCKED: "another process has locked it for 20 seconds",
    sqlite3.SQLITE_READONLY: "it is not writable",
    sqlite3.SQLITE_PERM: "it is not writable",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk failed",
}
"""Explanations of errors that are not due to the file's content."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create a file of SQLite, if it is a regular file.

    Raises:
        InputError: something else has its name, or SQLite cannot open it.
    """
    if path.exists() and (kind := kind_of(path)):
        raise InputError(f"{named(path)} is {kind}: ssd1b keeps its tables in a file of that name")
    with explain_errors(path):
        return sqlite3.connect(path, timeout=20, isolation_level=None)


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a store's file in a folder that cannot be written.

    Raises:
        InputError: as ``connect``; tables of an older version are not migrated, but refused.
    """
    with explain_errors(path):
        # Without "immutable", SQLite would write a file of locks next to it.
        database = sqlite3.connect(
            f"file:{quote(str(path.resolve()))}?immutable=1", uri=True, isolation_level=None
        )
        try:
            version = _version(database)
            _check(path, version, _columns(database))
            if version < SCHEMA:
                raise InputError(f"{named(path)} is of an older version and not writable: copy its folder")
        except BaseException:
            database.close()
            raise
        return database


def connect(path: Path) -> sqlite3.Connection:
    """Open or create a store's file. Tables of an older version are migrated.

    Raises:
        InputError: the file is not a store, is damaged or of a newer version, or the disk refused.
    """
    database = open_database(path)
    with explain_errors(path):
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
    """Create the tables in memory, for a store that has no folder yet."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    _create(database)
    return database


@contextmanager
def explain_errors(path: Path) -> Generator[None, None, None]:
    """Convert SQLite's errors to messages that say what happened and what to do.

    Raises:
        InputError: SQLite raised an error.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_IOERR and _is_full(path.parent):
            code = sqlite3.SQLITE_FULL
        if code in _CAUSES:
            kind = OutOfSpaceError if code == sqlite3.SQLITE_FULL else UnavailableError
            raise kind(f"cannot use {named(path)}: {_CAUSES[code]}") from error
        pictures = named(path.parent / PICTURES)
        raise InputError(
            f"{named(path)} is damaged, or not a store of cells ({reason(error)}): the images in {pictures} "
            "are separate files with their recipes; move the damaged file away: the same command starts anew"
        ) from error


def _is_full(folder: Path) -> bool:
    """Whether the disk has no room for the files that SQLite needs even to read."""
    try:
        return shutil.disk_usage(folder).free < 2**20
    except OSError:
        return False


@contextmanager
def transaction(database: sqlite3.Connection, path: Path) -> Generator[None, None, None]:
    """Write all or nothing, while other processes wait.

    Raises:
        InputError: as ``explain_errors``.
    """
    with explain_errors(path):
        database.execute("begin immediate")
        try:
            yield
            database.execute("commit")
        except BaseException:
            if database.in_transaction:  # a full disk may have ended it already
                database.execute("rollback")
            raise


_ENCODING = ("utf-8", "surrogatepass")


def row_checksum(*parts: Any) -> bytes:
    """A checksum of a row, which SQLite does not provide."""
    return blake2b(repr(parts).encode(*_ENCODING), digest_size=8).digest()


def sweep_checksum(definition: Any, members: Iterable[tuple[Any, Any]]) -> bytes:
    """The ``row_checksum`` of a sweep's definition, and its members' keys and places in order.

    The text of a million members is never held as a whole.
    """
    hashed = blake2b(f"({definition!r},".encode(*_ENCODING), digest_size=8)
    separator = " "
    for member in members:
        hashed.update(f"{separator}{tuple(member)!r}".encode(*_ENCODING))
        separator = ", "
    hashed.update(b")")
    return hashed.digest()


def _seal_rows(database: sqlite3.Connection) -> None:
    """Add the checksums that older versions did not have, so that a row without one is a damaged row."""
    rows = database.execute(
        "select key, state, digest, passes, metrics, error, thumbnail from cells"
    ).fetchall()
    database.executemany(
        "update cells set seal = ? where key = ?", [(row_checksum(*row), row[0]) for row in rows]
    )
    for name, definition in database.execute("select id, definition from sweeps").fetchall():
        select = "select key, places from members where sweep = ? order by position"
        seal = sweep_checksum(definition, database.execute(select, (name,)))
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
    """Refuse a file that is not a store or is from a newer version."""
    if version > SCHEMA:
        raise InputError(
            f"{named(path)} was written by a newer ssd1b (its tables are version {version}, this one reads "
            f"up to version {SCHEMA}): update ssd1b, or use another folder"
        )
    ours = tables.keys() <= _TABLES.keys() and (not tables or _ALWAYS <= tables.get("cells", set()))
    if version < 0 or not ours:
        raise InputError(f"{named(path)} is not a store of cells: use another folder")
    if version == SCHEMA:
        with closing(in_memory()) as expected:
            if tables != _columns(expected):
                raise InputError(
                    f"{named(path)} is damaged, or not a store of cells: move it away, or use another folder"
                )


def _create(database: sqlite3.Connection) -> None:
    for name, columns in _TABLES.items():
        rows = "without rowid" if name in _WITHOUT_ROWID else ""
        database.execute(f"create table if not exists {name} ({columns}) {rows}")
    database.execute(f"pragma user_version = {SCHEMA}")


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    with transaction(database, path):
        # Another process may have migrated it in the meantime.
        version, exists = _version(database), "cells" in _columns(database)
        for statement in (each for step in _MIGRATIONS[version:] for each in step) if exists else ():
            database.execute(statement)
        if exists and version < SCHEMA:
            _seal_rows(database)
        if version < SCHEMA:
            _create(database)
