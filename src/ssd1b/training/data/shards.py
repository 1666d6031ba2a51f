"""WebDataset shards with random access.

An example is the files of one stem, ``key.jpg`` with ``key.txt`` or ``key.json``. The webdataset library
reads shards as a stream, whose order depends on workers and cannot be resumed at a given step. Here a step's
batch is a function of its number: the offsets of members in an uncompressed tar are read from its headers.
"""

import io
import itertools
import math
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, NotFoundError
from ssd1b.files import named, open_regular
from ssd1b.picture_names import PICTURES, UNREAD
from ssd1b.training.data.examples import (
    MAX_BYTES,
    Example,
    Unusable,
    decoded,
    fail,
    parse_row,
    row_captions,
)

MAX_SHARDS = 1_000_000

_MAX_DIGITS = 9
_MAX_HEADER_BYTES = 2**20
"""Largest size of a member's name and attributes in bytes."""

_MASK, _CONTROL = ".mask.png", ".control.png"
"""Endings of the mask and the control image of an image, as in ``picture_names``."""

_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

Place = tuple[Path, int, int]
"""A member of a tar: the tar's path, offset and size; the size is -1 if it is not a plain file."""


def expand_braces(pattern: str) -> list[Path]:
    """Expand number ranges: ``a-{08..11}.tar`` is a-08.tar to a-11.tar.

    Raises:
        InputError: the pattern names no files, or more than ``MAX_SHARDS``.
    """
    parts = _RANGE.split(pattern)
    fixed, ranges = parts[::3], [*zip(parts[1::3], parts[2::3], strict=True)]
    if any(len(each) > _MAX_DIGITS for pair in ranges for each in pair):
        raise InputError(f"{named(pattern)}: numbers of shards may have at most {_MAX_DIGITS} digits")
    numbers = [range(int(first), int(last) + 1) for first, last in ranges]
    count = math.prod(map(len, numbers))
    if not 0 < count <= MAX_SHARDS:
        raise InputError(f"{named(pattern)} names {count} shards: allowed are 1 to {MAX_SHARDS}")
    written = [
        [f"{number:0{len(first)}d}" for number in each]
        for (first, _), each in zip(ranges, numbers, strict=True)
    ]
    return [
        Path("".join(itertools.chain(*zip(fixed, (*chosen, ""), strict=True))))
        for chosen in itertools.product(*written)
    ]


def shard_examples(shards: Sequence[Path], field: str | None) -> list[Example]:
    """List the examples of shards, in the order of the files.

    Examples behind a damaged part of a shard cannot be counted. Their number is estimated from the examples'
    mean size, so that the limit on unusable examples still applies.

    Raises:
        InputError: a shard is missing or compressed.
    """
    examples: list[Example] = []
    lost: list[tuple[Path, int]] = []
    total = 0
    for shard in shards:
        if not shard.is_file():
            raise NotFoundError(f"{shard}: no such shard")
        members, end = _members(shard)
        total += end
        for key, parts in _grouped(members):
            examples.append(_example(shard, key, parts, field))
        if not _ends_after(shard, end):
            lost.append((shard, max(shard.stat().st_size - end, 0)))
    size = total / len(examples) if examples else float("inf")
    for shard, missing in lost:
        broken = partial(fail, "shard damaged")
        count = max(1, round(missing / size))
        examples += [Example(f"{shard.name}, lost part {number}", broken, broken) for number in range(count)]
    return examples


class _Headers(io.BufferedReader):
    """A file that refuses to read oversized headers."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most as many bytes as a header may have."""
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("oversized header")
        return super().read(size)


def _members(shard: Path) -> tuple[list[tuple[str, Place]], int]:
    """Return the members of a tar as far as it can be read, and where the last of them ends."""
    members: list[tuple[str, Place]] = []
    end = 0
    try:
        with _Headers(open_regular(shard).detach()) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # The offset includes padding to whole blocks, up to the end of an intact archive.
                if tar.offset <= end:
                    raise tarfile.ReadError("negative size")
                end = tar.offset
                # Sparse files are not contiguous; links and devices have no content.
                plain = member.isfile() and not member.issparse()
                if not member.isdir():
                    members.append((member.name, (shard, member.offset_data, member.size if plain else -1)))
                archive: Any = tar
                archive.members.clear()  # each member takes a thousand bytes
    # Sizes in headers are untrusted: too large for memory or Python's stack, or negative.
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as error:
        with open_regular(shard) as file:
            compressed = file.read(2) == b"\x1f\x8b"
        if compressed:
            raise InputError(f"{shard}: a compressed tar has no random access: unpack it (gunzip)") from error
    return members, end


def _ends_after(shard: Path, end: int) -> bool:
    """Return whether the archive ends at its last member; tarfile takes a damaged header for the end."""
    if not end or end > shard.stat().st_size:
        return False
    with open_regular(shard) as file:
        file.seek(end)
        return not any(file.read(_BLOCK))


def _grouped(members: Sequence[tuple[str, Place]]) -> Iterator[tuple[str, dict[str, Place]]]:
    """Group members into examples as WebDataset does: a stem ends at the first dot of the name."""
    groups: dict[str, dict[str, Place]] = {}
    for name, place in members:
        folder, _, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if stem:
            groups.setdefault(f"{folder}/{stem}" if folder else stem, {})[f".{suffix.lower()}"] = place
    yield from groups.items()


def _example(shard: Path, key: str, parts: dict[str, Place], field: str | None) -> Example:
    picture = next((place for suffix, place in parts.items() if suffix in PICTURES), None)
    unread = next((suffix for suffix in parts if suffix in UNREAD), None)
    lacking = "picture missing" if unread is None else f"of a kind that is not read ({unread})"
    return Example(
        f"{shard.name}/{key}",
        partial(fail, lacking) if picture is None else partial(_slice, picture),
        partial(_captions, parts.get(".json"), parts.get(".txt"), field),
        mask=partial(_slice, parts[_MASK]) if _MASK in parts else None,
        control=partial(_slice, parts[_CONTROL]) if _CONTROL in parts else None,
    )


def _slice(place: Place) -> bytes:
    shard, offset, size = place
    if size < 0:
        raise Unusable("a link, device or sparse file in a tar")
    if size > MAX_BYTES:
        raise Unusable(f"file larger than {MAX_BYTES >> 20} MiB")
    try:
        with open_regular(shard) as file:
            file.seek(offset)
            data = file.read(size)
    except (OSError, InputError) as error:
        raise Unusable("file missing or not readable") from error
    if len(data) < size:
        raise Unusable("shard damaged")
    return data


def _captions(json_place: Place | None, text_place: Place | None, field: str | None) -> list[str]:
    """Read captions from the text file if no field was given, else from the JSON."""
    if text_place is not None and (field is None or json_place is None):
        return [decoded(_slice(text_place))]
    if json_place is None:
        raise Unusable("caption missing")
    return row_captions(parse_row(_slice(json_place)), field)
