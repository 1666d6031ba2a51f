"""Files and folders written whole or not at all, and never over what belongs to the user.

Three functions give a temporary path and move what was written there into place:

- ``writing``: a new name, or over a file if the user asked for that.
- ``renewing``: also over what it wrote there itself, as long as nobody changed it since.
- ``replacing``: over any file, in folders that hold nothing but the program's own, as caches and runs.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ssd1b.errors import ConflictError, InputError
from ssd1b.files import check_path, check_regular, disk_error, kind_of, named, open_regular, read_file

MARKS = ".ssd1b-written"
"""In a folder: a line for all that ``renewing`` wrote there, with digest and name."""

_HEAD = "# What ssd1b wrote in this folder, and may replace as long as it is unchanged.\n"
_MOST_MARKS = 64 * 2**20
_DIGESTED = 2**20
"""Bytes at the beginning of each file that its digest is made of, beside its size."""

_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.partial")
"""Names of what is being written, or was when the program was killed."""

_AWAY = "choose another name, or move it away"

# What the file systems without hard links say (FAT, some network folders).
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def replacing(target: Path, temporary: Path | None = None, *, durable: bool = True) -> Iterator[Path]:
    """Write a file in a folder of the program's own, over an older one if there is one.

    If anything goes wrong, a full disk or Ctrl-C, the temporary is removed and ``target`` is what it was.

    Args:
        target: the file to be written, or a folder that must not exist.
        temporary: on the same disk, and this process's alone; if None, one beside ``target``. SIGKILL leaves
            it behind: a caller that gives a name can find it and remove it.
        durable: wait until the disk has it. Without that, a power failure can leave half a file.

    Raises:
        InputError: the disk refused, or a folder or something else that is no file has the name.
    """

    def check(aside: Path) -> None:
        check_free(target, overwrite=True, written=aside)

    with _moved(target, temporary, check, durable=durable) as aside:
        yield aside


@contextmanager
def writing(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file or folder under a name that is free, or over a file if ``overwrite``; see ``replacing``.

    Raises:
        InputError: as ``replacing``; or the name is taken, by something else than a file of the same content.
    """
    with _moved(target, None, lambda aside: check_free(target, overwrite=overwrite, written=aside)) as aside:
        yield aside


@contextmanager
def renewing(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file or folder as ``writing``, or over what this function wrote there, and note that down.

    Raises:
        InputError: as ``writing``; what is in the way was not written here, or was changed since.
    """

    def check(aside: Path) -> None:
        if not _is_marked(target):
            check_free(target, overwrite=overwrite, written=aside)

    with _moved(target, None, check) as aside:
        yield aside
        check(aside)
        # Before the move: if the program ends in between, a mark too many does no harm.
        _note(target.parent, f"{_digest(aside)} {target.name}")


def check_free(target: Path, *, overwrite: bool = False, written: Path | None = None) -> None:
    """Find out whether ``writing`` could write there.

    Args:
        target: what is to be written.
        overwrite: a file may be replaced.
        written: the new content, if it is there already.

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
        raise ConflictError(f"{named(target)} is there already: choose another name, or add --overwrite")
    if written is not None and written.is_dir():
        raise ConflictError(f"cannot write {named(target)}: a file has that name; {_AWAY}")


def check_renewable(target: Path, *, overwrite: bool = False) -> None:
    """Find out before the work whether ``renewing`` could write there.

    Raises:
        InputError: it could not.
    """
    check_folder(target.parent)
    check_path(target)
    if not _is_marked(target):
        check_free(target, overwrite=overwrite)


def check_folder(folder: Path) -> None:
    """Find out before the work whether files can be written into a folder, which may not exist yet.

    Raises:
        InputError: it is no folder or leads through a file, or it may not be written.
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
    """Make a folder that is to hold nothing but the program's own, or find that it is one.

    Raises:
        InputError: it holds files that are not the program's, or it cannot be written.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MARKS).exists():
            if any(folder.iterdir()):
                raise ConflictError(f"{named(folder)} holds files that ssd1b did not write: {_AWAY}")
            _note(folder)
    except OSError as error:
        raise disk_error(f"cannot write {named(folder)}", error) from None


def temporary_path(folder: Path) -> Path:
    """A new path in a folder, for what is being written, that ``remove_unfinished`` finds."""
    return folder / f".{secrets.token_hex(16)}.partial"


def remove_unfinished(folder: Path) -> None:
    """Remove what was being written in a folder when the program was killed.

    Only for a folder in which no other process is writing.
    """
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name) and not path.is_symlink():
            _remove(path)


def take_name(written: Path, name: Path) -> bool:
    """Move a file to a name unless something has that name: one step, so that no two processes take it.

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
        os.replace(written, name)  # over the empty file that holds the name for us
        return True
    os.unlink(written)
    return True


def sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's list of names."""
    folder = path.is_dir()
    if folder and sys.platform == "win32":
        return  # where a folder cannot be opened
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno == errno.EINVAL):  # some network folders cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _moved(
    target: Path, temporary: Path | None, check: Callable[[Path], None], *, durable: bool = True
) -> Iterator[Path]:
    """Give a temporary path; in the end move it to ``target``, over what is there if ``check`` allows it."""
    aside = temporary or temporary_path(target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        if durable:
            for path in (*aside.rglob("*"), aside):
                sync(path)
        _move(aside, target, check)
        if durable:
            sync(target.parent)
    except OSError as error:
        raise disk_error(f"cannot write {named(target)}", error, "; nothing was changed") from error
    finally:
        _remove(aside)


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
    # A directory cannot replace another in a single step: the old one steps aside, and comes back on failure.
    aside = target.with_name(f".{secrets.token_hex(16)}.old")
    target.rename(aside)
    try:
        source.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():  # unlink(missing_ok=True) still raises if a file stands where its folder should
        path.unlink()


def _is_marked(target: Path) -> bool:
    """Whether ``renewing`` wrote just what is there."""
    marks = target.parent / MARKS
    if target.is_symlink() or not target.exists() or not marks.exists():
        return False
    lines = read_file(marks, most=_MOST_MARKS).decode("utf-8", "replace").splitlines()
    return f"{_digest(target)} {target.name}" in lines


def _digest(path: Path) -> str:
    """Of a file's size and beginning, or those of all files in a folder, with their names."""
    state = hashlib.sha256()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        kind = "a link" if each.is_symlink() else kind_of(each)
        state.update(f"{each.relative_to(path).as_posix()}, {kind or each.stat().st_size};".encode())
        if kind is None:
            with open_regular(each) as file:
                state.update(file.read(_DIGESTED))
    return state.hexdigest()


def _note(folder: Path, *lines: str) -> None:
    """Add to a folder's marks in one write, as several processes may do at a time."""
    head = _HEAD
    if (folder / MARKS).exists():
        head = ""
        check_regular(folder / MARKS)
    with (folder / MARKS).open("a", encoding="utf-8") as file:
        file.write(head + "".join(f"{line}\n" for line in lines))
