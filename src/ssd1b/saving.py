"""Atomic writes of files and folders that never overwrite a user's own files.

Three context managers yield a temporary path and move what was written there into place:

- ``writing``: to a new name, or over a file if the user asked for that.
- ``renewing``: also over its own earlier output, unless that was changed since.
- ``replacing``: over any file, in folders that contain only the program's files, such as caches and runs.

Only ``renewing`` replaces a folder. A file never replaces a folder, nor a folder a file.
"""

import errno
import filecmp
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from ssd1b.errors import ConflictError, InputError
from ssd1b.files import check_path, check_regular, disk_error, kind_of, named, open_regular, read_file

MARKS = ".ssd1b-written"
"""File in a folder with a line for everything ``renewing`` wrote there: digest and name."""

_HEAD = "# What ssd1b wrote in this folder, and may replace as long as it is unchanged.\n"
_MOST_MARKS = 64 * 2**20
_DIGESTED = 2**20
"""Bytes at the beginning of each file that enter its digest, in addition to its size."""

_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.partial")
"""Names of temporary paths, which remain if the program is killed."""

_AWAY = "choose another name, or move it away"

# Errors of file systems without hard links (FAT, some network folders).
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def replacing(
    target: Path, temporary: Path | None = None, *, durable: bool = True
) -> Generator[Path, None, None]:
    """Write a file in one of the program's own folders, replacing an older one.

    On any failure, such as a full disk or Ctrl-C, the temporary is removed and ``target`` is unchanged.

    Args:
        target: the file to write, or a folder that must not exist.
        temporary: path on the same disk that no other process uses; None for a random name next to
            ``target``. After SIGKILL it remains, and a caller that chose its name can remove it.
        durable: sync to disk. Otherwise a power failure can leave half a file.

    Raises:
        InputError: the disk is full or not writable, or the target is something else than a file.
    """

    def check(temporary: Path) -> None:
        check_free(target, overwrite=True, written=temporary)

    with _move_into_place(target, temporary, check, durable=durable) as path:
        yield path


@contextmanager
def writing(target: Path, *, overwrite: bool = False) -> Generator[Path, None, None]:
    """Write a file or folder to a new name, or over a file if ``overwrite``; see ``replacing``.

    Raises:
        InputError: as ``replacing``; or the name is taken by anything but a file with the same content.
    """

    def check(temporary: Path) -> None:
        check_free(target, overwrite=overwrite, written=temporary)

    with _move_into_place(target, None, check) as path:
        yield path


@contextmanager
def renewing(target: Path, *, overwrite: bool = False) -> Generator[Path, None, None]:
    """Write a file or folder like ``writing``, or over its own earlier output; recorded in ``MARKS``.

    Raises:
        InputError: as ``writing``; the existing file was not written by this function, or was changed since.
    """

    def check(temporary: Path) -> None:
        check_renewable(target, overwrite=overwrite, written=temporary)

    with _move_into_place(target, None, check) as path:
        yield path
        check(path)
        # Before the move: if the program ends in between, a superfluous mark does no harm.
        _add_marks(target.parent, f"{_digest(path)} {target.name}")


def check_free(target: Path, *, overwrite: bool = False, written: Path | None = None) -> None:
    """Check whether ``writing`` could write to a path.

    Args:
        target: the path.
        overwrite: allow replacing a file.
        written: the temporary with the new content, if it exists already.

    Raises:
        InputError: it could not.
    """
    check_folder(target.parent)
    check_path(target)
    if not os.path.lexists(target):
        return
    kind = "a link" if target.is_symlink() else kind_of(target)
    if kind is not None:
        raise ConflictError(f"cannot write {named(target)}: {kind} has that name; {_AWAY}")
    same = written is not None and written.is_file() and filecmp.cmp(written, target, shallow=False)
    if not overwrite and not same:
        raise ConflictError(f"{named(target)} already exists: choose another name, or add --overwrite")
    if written is not None and written.is_dir():
        raise ConflictError(f"cannot write {named(target)}: a file has that name; {_AWAY}")


def check_renewable(target: Path, *, overwrite: bool = False, written: Path | None = None) -> None:
    """Check whether ``renewing`` could write to a path; see ``check_free``.

    Raises:
        InputError: it could not.
    """
    check_folder(target.parent)
    check_path(target)
    if not _is_marked(target):
        check_free(target, overwrite=overwrite, written=written)


def check_folder(folder: Path) -> None:
    """Check whether files can be written into a folder, which may not exist yet.

    Raises:
        InputError: it is not a folder, leads through a file, or is not writable.
    """
    check_path(folder)
    existing = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    code = 0
    if not existing.is_dir():
        code = errno.ENOTDIR
    elif not os.access(existing, os.W_OK | os.X_OK):
        code = errno.EACCES
    if code:
        raise InputError(f"cannot write {named(folder)}: {os.strerror(code)}")


def claim_folder(folder: Path) -> None:
    """Create a folder for the program's files only, or check that an existing one is such a folder.

    Raises:
        InputError: it contains files that are not the program's, or is not writable.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MARKS).exists():
            if any(folder.iterdir()):
                raise ConflictError(f"{named(folder)} contains files that ssd1b did not write: {_AWAY}")
            _add_marks(folder)
    except OSError as error:
        raise disk_error(f"cannot write {named(folder)}", error) from None


def temporary_path(folder: Path) -> Path:
    """Choose a random temporary path in a folder, which ``remove_unfinished`` recognizes."""
    return folder / f".{secrets.token_hex(16)}.partial"


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder that no other process writes to."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name) and not path.is_symlink():
            _remove(path)


def take_name(written: Path, name: Path) -> bool:
    """Move a file to a new name atomically, so that no two processes take the same name.

    Returns:
        Whether the name was free.
    """
    try:
        os.link(written, name)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        try:
            name.open("xb").close()
        except FileExistsError:
            return False
        os.replace(written, name)  # over the empty file that reserves the name
        return True
    os.unlink(written)
    return True


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    folder = path.is_dir()
    if folder and sys.platform == "win32":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno == errno.EINVAL):  # some network folders cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _move_into_place(
    target: Path, temporary: Path | None, check: Callable[[Path], None], *, durable: bool = True
) -> Generator[Path, None, None]:
    """Yield a temporary path, then move it to ``target``, over existing files if ``check`` allows."""
    temporary = temporary or temporary_path(target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
        _move(temporary, target, check)
        if durable:
            sync(target.parent)
    except OSError as error:
        raise disk_error(f"cannot write {named(target)}", error, "; nothing was changed") from error
    finally:
        _remove(temporary)


def _move(source: Path, target: Path, check: Callable[[Path], None]) -> None:
    if not source.is_dir():
        if not take_name(source, target):
            check(source)
            os.replace(source, target)
        return
    if not os.path.lexists(target):
        source.rename(target)
        return
    check(source)
    # A directory cannot be replaced in a single step: the old one is renamed, and renamed back on failure.
    old = target.with_name(f".{secrets.token_hex(16)}.old")
    target.rename(old)
    try:
        source.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():  # unlink(missing_ok=True) still raises if a file stands where its folder should
        path.unlink()


def _is_marked(target: Path) -> bool:
    """Whether ``renewing`` wrote the target, and it was not changed since."""
    marks = target.parent / MARKS
    if target.is_symlink() or not target.exists() or not marks.exists():
        return False
    lines = read_file(marks, most=_MOST_MARKS).decode("utf-8", "replace").splitlines()
    return f"{_digest(target)} {target.name}" in lines


def _digest(path: Path) -> str:
    """Hash a file's size and beginning, or those of all files in a folder with their names."""
    state = hashlib.sha256()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        kind = "a link" if each.is_symlink() else kind_of(each)
        state.update(f"{each.relative_to(path).as_posix()}, {kind or each.stat().st_size};".encode())
        if kind is None:
            with open_regular(each) as file:
                state.update(file.read(_DIGESTED))
    return state.hexdigest()


def _add_marks(folder: Path, *lines: str) -> None:
    """Append to a folder's marks in a single write, since several processes may do so at the same time."""
    head = _HEAD
    if (folder / MARKS).exists():
        head = ""
        check_regular(folder / MARKS)
    with (folder / MARKS).open("a", encoding="utf-8") as file:
        file.write(head + "".join(f"{line}\n" for line in lines))
