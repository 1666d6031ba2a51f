"""Paths from users, and files from other programs; the only place where a file is opened for reading.

Only regular files are opened, since reading a named pipe, a device or a socket could block forever.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from ssd1b.errors import ConflictError, InputError, NotFoundError, OutOfSpaceError, shown

T = TypeVar("T")

_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
"""Encodings by byte order mark, longer marks first."""

# First bytes of files that are mistaken for safetensors. A pickle is refused because opening it can run code.
_IMPOSTORS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as PyTorch writes pickles; a pickle can run code when opened"),
    *((bytes((0x80, version)), "a pickle, which can run code when opened") for version in (2, 3, 4, 5)),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer: the download is incomplete, run 'git lfs pull'"),
    (b"<", "a web page: the download went wrong"),
    (b"{", "a JSON text"),
    (b"\x1f\x8b", "a gzip archive"),
)

_LONGEST = 160
"""Maximum length of a path in a message, in characters."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


_CLASSES: dict[int | None, type[InputError]] = {
    errno.ENOENT: NotFoundError,
    errno.EEXIST: ConflictError,
    errno.ENOSPC: OutOfSpaceError,
    errno.EDQUOT: OutOfSpaceError,
}
"""Error classes for the operating system's error numbers; ``InputError`` for all others."""


def named(path: str | Path) -> str:
    """Format a path for a message: shortened in the middle if long, quoted if not plainly printable."""
    text = str(path)
    text = text if text.isprintable() and text.strip() == text != "" else repr(text)
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[: half - 3]}...{text[-half:]}"


_LONGEST_REASON = 200


def reason(error: Exception) -> str:
    """Return the operating system's description of an error without the path, or a library's, shortened."""
    if _error_class(error) is OutOfSpaceError:
        return "no space left on the disk"
    return getattr(error, "strerror", None) or shown(error, _LONGEST_REASON)


def disk_error(message: str, error: Exception, advice: str = "") -> InputError:
    """Build the error for a failed system call, of the class that fits its error number."""
    return _error_class(error)(f"{message}: {reason(error)}{advice}")


def _error_class(error: Exception) -> type[InputError]:
    if "No space left" in str(error):  # safetensors gives no number
        return OutOfSpaceError
    return _CLASSES.get(getattr(error, "errno", None), InputError)


def check_path(path: str | Path) -> None:
    """Check that a path is valid on this system; nothing has to exist there.

    Raises:
        InputError: the path has a null character, is too long for the file system, or leads through a folder
            that may not be searched.
    """
    # The system does not look at names behind a missing folder, so each is also tried by itself.
    for each in (path, *Path(path).parts):
        try:
            os.lstat(each)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a null character, or half of a surrogate pair
            raise InputError(f"{named(path)} cannot be a path here: {reason(error)}") from None


def expand_path(text: str) -> str:
    """Check that a text is a valid path, and expand ``~`` and ``~user`` at its beginning.

    Nothing has to exist there. A slash at the end is kept.

    Raises:
        InputError: the text is empty, names a user who does not exist, or is refused by ``check_path``.
    """
    if not text.strip():
        raise InputError("a path is empty: it must name a file or folder")
    path = os.path.expanduser(text)
    check_path(path)
    if path.startswith("~") and not os.path.lexists(path):
        raise InputError(f"{named(text)}: there is no user of that name, or the user has no home folder")
    return path


def check_link(path: str | Path) -> None:
    """Check that a path is not a symbolic link that leads nowhere.

    Raises:
        NotFoundError: its target does not exist, or it leads back to itself.
    """
    if not os.path.islink(path):
        return
    try:
        os.stat(path)
    except FileNotFoundError:
        target = named(os.readlink(path))
        raise NotFoundError(f"{named(path)} is a link to {target}, which does not exist") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotFoundError(f"{named(path)} is a link that leads back to itself") from None


def kind_of(path: str | Path) -> str | None:
    """Describe what a path is, such as "a folder"; None for a regular file. Links are followed.

    Raises:
        OSError: nothing exists there.
    """
    mode = os.stat(path).st_mode
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def check_regular(path: str | Path) -> None:
    """Check that a path is a regular file, for libraries that open it themselves.

    Raises:
        InputError: it does not exist, or is something else, such as a folder or a named pipe.
    """
    check_link(path)
    try:
        kind = kind_of(path)
    except (OSError, ValueError) as error:
        raise disk_error(f"cannot read {named(path)}", error) from None
    if kind is not None:
        raise InputError(f"cannot read {named(path)}: it is {kind}, not a file")


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading bytes.

    Raises:
        InputError: it does not exist, is something else, such as a folder or a pipe, or is not readable.
    """
    check_regular(path)
    try:
        return open(path, "rb")
    except OSError as error:
        raise disk_error(f"cannot read {named(path)}", error) from None


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        InputError: it is not a regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: str | Path, *, most: int) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        most: maximum size in bytes.

    Raises:
        InputError: the file cannot be opened (see ``open_regular``) or read, or is larger.
    """
    with open_regular(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise disk_error(f"cannot read {named(path)}", error) from None
    if len(data) > most:
        raise InputError(f"{named(path)} is too large: at most {most} bytes are allowed")
    return data


def impostor(start: bytes) -> str | None:
    """Say what a file is that is mistaken for safetensors, by its first bytes; None if that is not known."""
    return next((what for magic, what in _IMPOSTORS if start.startswith(magic)), None)


LARGEST_HEADER = 16 * 2**20
"""Maximum size of a safetensors header in bytes, with metadata; SDXL's has 0.3 million."""


def header_length(file: BufferedReader, path: str | Path) -> int:
    """Return the size of the header of a safetensors file, which begins at byte 8.

    Raises:
        InputError: it is another file; the message says which, if that is known.
    """
    start = file.read(64)
    length = int.from_bytes(start[:8], "little")
    if length > min(LARGEST_HEADER, os.fstat(file.fileno()).st_size - 8) or start[8:9] != b"{":
        what = impostor(start.lstrip()) or ("another file, or a damaged one" if start else "an empty file")
        raise InputError(f"{named(path)}: {what}; only intact safetensors files are supported")
    return length


METADATA = "ssd1b"
"""Key of what this package writes into the metadata of a safetensors file, a JSON object."""


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file by name, from its header alone.

    Raises:
        InputError: it is another file, or its header is damaged.
    """
    return _from_header(path, lambda header: {
        name: tuple(int(size) for size in entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    })  # fmt: skip


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file: free-form texts by key.

    Raises:
        InputError: it is another file, or its header is damaged.
    """
    return _from_header(path, lambda header: {
        str(key): str(text) for key, text in header.get("__metadata__", {}).items()
    })  # fmt: skip


def _from_header(path: str | Path, read: Callable[[Any], T]) -> T:
    """Read something of a safetensors file's header; raises as ``read_shapes``."""
    with open_regular(path) as file:
        try:
            length = header_length(file, path)
            file.seek(8)
            return read(json.loads(file.read(length)))
        except OSError as error:
            raise disk_error(f"cannot read {named(path)}", error) from None
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{named(path)}: a damaged safetensors file: {shown(error)}") from None


def decode_text(data: bytes, where: str) -> str:
    """Decode UTF-8, or UTF-16 or UTF-32 with a byte order mark, and remove the mark.

    Args:
        data: content of a file.
        where: name of the file in errors.

    Raises:
        InputError: the encoding is another one, or the data are not text.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        called = encoding.removesuffix("-sig").upper()
        raise InputError(
            f"{where} is not valid {called}: byte {error.start} cannot be decoded; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise InputError(f"{where} is not text: it has a null character; save it as UTF-8")
    return text
