"""Files that an image is generated from: the content decides, the path only finds it."""

import hashlib
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ssd1b.errors import ConflictError, InputError, NotFoundError
from ssd1b.inputs import InputFile

BYTES = b"a picture"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(BYTES)
    return path


def test_the_content_decides(path: Path, tmp_path: Path) -> None:
    found = InputFile.of(path, most=100)
    assert (found.sha256, found.path) == (hashlib.sha256(BYTES).hexdigest(), str(path))
    other = tmp_path / "b.png"
    other.write_bytes(BYTES)
    same = InputFile.of(other, most=100)
    assert same == found and hash(same) == hash(found) and same.path != found.path
    assert found.read(most=100) == BYTES
    assert found.verified(most=100) == path


def test_the_path_is_absolute(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    assert InputFile.of("a.png", most=100).path == str(path)
    monkeypatch.setenv("HOME", str(path.parent))
    assert InputFile.of("~/a.png", most=100).path == str(path)


def test_a_table_is_read_and_checked(path: Path) -> None:
    found = InputFile.of(path, most=100)
    assert InputFile(**asdict(found)) == found
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        replace(found, sha256="ABC")
    with pytest.raises(InputError, match="path"):
        replace(found, path="")
    with pytest.raises(InputError, match="path is missing"):
        InputFile(sha256=found.sha256)  # pyright: ignore[reportCallIssue]


def test_a_file_that_changed_is_refused(path: Path) -> None:
    found = InputFile.of(path, most=100)
    path.write_bytes(b"another picture")
    for use in (found.read, found.verified):
        with pytest.raises(ConflictError, match=r"a.png has changed: its SHA-256 is \w{12}"):
            use(most=100)


def test_a_file_that_is_gone_is_named(path: Path) -> None:
    found = InputFile.of(path, most=100)
    path.unlink()
    for use in (found.read, found.verified):
        with pytest.raises(NotFoundError, match=r"a\.png"):
            use(most=100)
    with pytest.raises(NotFoundError, match=r"a\.png"):
        InputFile.of(path, most=100)


def test_size_is_limited_before_reading(path: Path) -> None:
    with pytest.raises(InputError, match="too large: it has 9 bytes, at most 8 are allowed"):
        InputFile.of(path, most=8)
    with pytest.raises(InputError, match="too large"):
        InputFile.of(path, most=9).read(most=8)
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk, and would take minutes to hash
    with pytest.raises(InputError, match="too large"):
        InputFile.of(path, most=100)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for what in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="not a file"):
            InputFile.of(what, most=100)
