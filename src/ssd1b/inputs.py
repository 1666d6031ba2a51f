"""Files that an image is generated from, such as a picture or a mask: identified by content, found by path.

The digest decides what is generated, so two names of the same bytes are the same input, and a file that was
changed since is refused. The path only says where to look, and is never part of a key.
"""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

from ssd1b.errors import ConflictError, InputError, NotFoundError, shown, unknown
from ssd1b.files import disk_error, expand_path, named, open_regular
from ssd1b.validation import Check, Name, validated

SUFFIX = ".safetensors"
"""Of files with weights."""

ADAPTER_KEY = re.compile(
    r"lora_(down|up|mid|A|B)\b|\.lora\.(down|up)\.|lora_linear_layer|\.hada_[wt]\d|\.lokr_[wt]\d"
    r"|\.dora_scale$|\.oft_blocks$|\.(diff|diff_b)$|^lora_(unet|te)"
)
"""Names of tensors that only a LoRA or another adapter has."""

_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_PIECES = 32


def _hexadecimal(text: str) -> None:
    if _SHA256.fullmatch(text) is None:
        raise InputError(f"sha256 is {shown(text)}: it must be 64 hexadecimal digits in lower case")


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file that an image is generated from.

    Attributes:
        sha256: SHA-256 of its content, 64 hexadecimal digits; two inputs with the same one are equal.
        path: where it was found, absolute. Like a model's path it is part of recipes, and so of every image
            that is shared.
    """

    sha256: Annotated[str, Check(_hexadecimal)]
    path: Name = field(compare=False)

    def __str__(self) -> str:
        """Return the path for a message, see ``files.named``."""
        return named(self.path)

    @classmethod
    def of(cls, path: str | Path, *, most: int) -> "InputFile":
        """Identify a file by its content.

        Args:
            path: the file; ``~`` is expanded.
            most: maximum size in bytes, checked before anything is read.

        Raises:
            NotFoundError: it does not exist.
            InputError: it is not a regular file, cannot be read, or is too large.
        """
        found = os.path.abspath(expand_path(str(path)))
        with _open(found, most) as file:
            return cls(sha256=_digest(file, found), path=found)

    def read(self, *, most: int) -> bytes:
        """Read the content, and check that it is the same as when the file was identified.

        Args:
            most: maximum size in bytes.

        Raises:
            NotFoundError: the file no longer exists at ``path``.
            ConflictError: its content has changed.
            InputError: as ``of``.
        """
        with _open(self.path, most) as file:
            try:
                data = file.read(most + 1)
            except OSError as error:
                raise disk_error(f"cannot read {named(self.path)}", error) from None
        self._check(hashlib.sha256(data).hexdigest())
        return data

    def verified(self, *, most: int) -> Path:
        """Return the path after checking the content, for libraries that open a file themselves.

        Args:
            most: maximum size in bytes.

        Raises:
            InputError: as ``read``.
        """
        with _open(self.path, most) as file:
            self._check(_digest(file, self.path))
        return Path(self.path)

    def _check(self, found: str) -> None:
        if found != self.sha256:
            digests = f"its SHA-256 is {found[:12]}..., expected {self.sha256[:12]}..."
            raise ConflictError(f"{named(self.path)} has changed: {digests}")


def _open(path: str, most: int) -> BufferedReader:
    file = open_regular(path)
    size = os.fstat(file.fileno()).st_size
    if size <= most:
        return file
    file.close()
    raise InputError(f"{named(path)} is too large: it has {size} bytes, at most {most} are allowed")


def _digest(file: BufferedReader, path: str) -> str:
    try:
        return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise disk_error(f"cannot read {named(path)}", error) from None


def divide(text: str, counts: Sequence[int], known: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Divide an option's value, parts with colons between them, into paths and what comes after them.

    Paths may contain colons, too, so the longest beginning counts that can be divided into files that exist.

    Args:
        text: the value.
        counts: numbers of paths that it may begin with, in the order of preference.
        known: names that count as files.

    Returns:
        The paths, and the other parts. If files are missing, the paths are the first parts, as many as the
        last of ``counts``.
    """
    pieces, rest = text.split(":", _MOST_PIECES), list[str]()
    while True:
        for count in counts:
            if (paths := _existing(pieces, count, known)) is not None:
                return paths, rest
        if len(pieces) <= counts[-1]:
            return pieces, rest
        rest.insert(0, pieces.pop())


def _existing(pieces: Sequence[str], count: int, known: Collection[str]) -> list[str] | None:
    """Divide pieces into so many paths that all exist; None if there is no such division."""
    if count == 0:
        return None if pieces else []
    for cut in range(len(pieces) if count == 1 else 1, len(pieces) - count + 2):
        path = ":".join(pieces[:cut])
        if path in known or os.path.lexists(os.path.expanduser(path)):
            others = _existing(pieces[cut:], count - 1, known)
            if others is not None:
                return [path, *others]
    return None


def without_suffix(path: Path) -> Path:
    """Return the path of a file without its suffix."""
    return path.with_suffix("")


def name_in(folder: Path, path: Path, place: Callable[[Path], Path] = without_suffix) -> str:
    """Return the name of a file below a folder, with the folders that lead to it.

    Args:
        folder: where it is.
        path: the file.
        place: returns what the file is named after, such as a folder that is one thing as a whole.
    """
    found = place(path)
    return (without_suffix(path) if found == folder else found).relative_to(folder).as_posix()


def files_by_name(
    folder: Path, what: str, place: Callable[[Path], Path] = without_suffix
) -> dict[str, list[Path]]:
    """List the safetensors files below a folder by name, and by name with the folders that lead to it.

    Args:
        folder: where they are.
        what: they are, for the error.
        place: as ``name_in``.

    Raises:
        NotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{named(folder)}: no such folder, in which {what} are looked for")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        name = name_in(folder, path, place)
        for each in {name, name.rpartition("/")[2]}:
            found.setdefault(each, []).append(path)
    return found


def only_file(kind: str, name: str, files: Mapping[str, Sequence[Path]]) -> Path:
    """Choose the file of a name from those of ``files_by_name``.

    Args:
        kind: what it is, such as "lora", for errors.
        name: the name.
        files: by name.

    Raises:
        NotFoundError: there is none; the message gives the nearest name.
        InputError: there are several.
    """
    paths = files.get(name)
    if not paths:
        raise unknown(kind, name, files, NotFoundError)
    if len(paths) > 1:
        raise InputError(
            f"{kind} {shown(name)} is the name of several files: write the folder, too: {named(paths[0])}"
        )
    return paths[0]


def digest_of(value: Any) -> Any:
    """Convert what decides an image for ``json.dumps(default=...)`` of keys and names.

    An input becomes its digest, and another dataclass a table of the fields that are compared and not None.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, InputFile):
        return value.sha256
    if is_dataclass(value):
        table = {each.name: getattr(value, each.name) for each in fields(value) if each.compare}
        return {name: each for name, each in table.items() if each is not None}
    raise TypeError(f"not JSON: {type(value).__name__}")


def with_tables(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace dataclasses, also in lists, by tables, for JSON; ``InputFile(**table)`` is the inverse."""
    return {name: _table(each) for name, each in settings.items()}


def _table(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_table(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def files_in(value: Any) -> Iterator[InputFile]:
    """Find the files in the value of a setting: itself, or those in tuples and dataclasses."""
    if isinstance(value, InputFile):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from files_in(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from files_in(getattr(value, each.name))


def with_paths(value: Any, place: Callable[[str], str]) -> Any:
    """Change where the files in the value of a setting are looked for, but not what they are.

    Args:
        value: the value; it is returned itself if it has no files.
        place: returns the new path for a path.
    """
    if next(files_in(value), None) is None:
        return value
    if isinstance(value, InputFile):
        return replace(value, path=place(value.path))
    if isinstance(value, tuple):
        return tuple(with_paths(each, place) for each in value)
    return replace(
        value, **{each.name: with_paths(getattr(value, each.name), place) for each in fields(value)}
    )
