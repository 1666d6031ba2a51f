"""A store in a folder that cannot be written, or on a disk that is full."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssd1b.errors import InputError, OutOfSpaceError, UnavailableError
from ssd1b.jobs import schema
from ssd1b.jobs.store import DONE, Outcome, Store

KEY = "a" * 64


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    with closing(Store(tmp_path / "store")) as store:
        store.claim([KEY])
        store.finish([(KEY, Outcome(state=DONE, passes=3.0, metrics={"score": 1.0}), None)])
    return tmp_path / "store"


@pytest.fixture
def read_only(finished: Path) -> Iterator[Path]:
    if os.geteuid() != 0:  # permissions do not hold for root
        finished.chmod(0o500)
        yield finished
        finished.chmod(0o700)
        return
    bind = ["mount", "--bind", "-o", "ro", str(finished), str(finished)]
    if subprocess.run(bind, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a disk")
    yield finished
    subprocess.run(["umount", str(finished)], check=True)


def test_a_store_that_cannot_be_written_can_be_read(read_only: Path) -> None:
    with closing(Store(read_only)) as store:
        assert store._database.execute("select key, passes from cells").fetchall() == [(KEY, 3.0)]
        with pytest.raises(InputError, match="cannot write"):
            store.claim(["b" * 64])


def test_an_error_of_a_full_disk_is_no_damage(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    for free, kind in ((0, OutOfSpaceError), (10**9, UnavailableError)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        with pytest.raises(kind) as found, schema.explain_errors(finished / "cells.sqlite"):
            raise error
        assert "damaged" not in str(found.value)
