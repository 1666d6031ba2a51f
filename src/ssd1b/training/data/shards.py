"""WebDataset shards, read at any place.

An example is the files of one stem, ``key.jpg`` with ``key.txt`` or ``key.json``. The webdataset library
reads shards as a stream, whose order depends on workers and cannot be taken up at a given step; here each
step's batch is a function of its number. For that an uncompressed tar needs nothing but the places of its
members, which the standard library finds by reading the headers alone.
"""

import itertools
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ssd1b.errors import InputError
from ssd1b.files import open_regular
from ssd1b.training.data.examples import PICTURES, Example, Unusable, decoded, fail, parse_row, row_captions

_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

Place = tuple[Path, int, int]
"""A member of a tar: the file, where its bytes begin, how many they are."""


def expand_braces(pattern: str) -> list[Path]:
    """Write out number ranges: ``a-{08..11}.tar`` is a-08.tar to a-11.tar."""
    parts = _RANGE.split(pattern)
    fixed, ranges = parts[::3], zip(parts[1::3], parts[2::3], strict=True)
    numbers = [
        [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] for first, last in ranges
    ]
    return [
        Path("".join(itertools.chain(*zip(fixed, (*chosen, ""), strict=True))))
        for chosen in itertools.product(*numbers)
    ] or [Path(pattern)]


def shard_examples(shards: Sequence[Path], field: str | None) -> list[Example]:
    """List the examples of shards, in the order of the files.

    What lies behind the damage in a shard cannot be counted. It is estimated from the examples' mean size, so
    that a cap on what is unusable means something.

    Raises:
        InputError: a shard is missing or compressed.
    """
    examples: list[Example] = []
    lost: list[tuple[Path, int]] = []
    total = 0
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{shard}: no such shard")
        members, end = _members(shard)
        total += end
        for key, parts in _grouped(members):
            examples.append(_example(shard, key, parts, field))
        if not _ends(shard, end):
            lost.append((shard, max(shard.stat().st_size - end, 0)))
    size = total / len(examples) if examples else float("inf")
    for shard, missing in lost:
        broken = partial(fail, "shard damaged")
        count = max(1, round(missing / size))
        examples += [Example(f"{shard.name}, lost part {number}", broken, broken) for number in range(count)]
    return examples


def _members(shard: Path) -> tuple[list[tuple[str, Place]], int]:
    """The files in a tar as far as it can be read, and where the last of them ends."""
    members, end = [], 0
    try:
        with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                # Data are padded to whole blocks; the last one's end is the archive's unless it is damaged.
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isfile():
                    members.append((member.name, (shard, member.offset_data, member.size)))
    except (tarfile.TarError, EOFError, OSError) as error:
        with open_regular(shard) as file:
            compressed = file.read(2) == b"\x1f\x8b"
        if compressed:
            raise InputError(
                f"{shard}: a compressed tar, which cannot be read at any place: unpack it (gunzip)"
            ) from error
    return members, end


def _ends(shard: Path, end: int) -> bool:
    """Whether the archive ends where its last member does; tarfile takes a damaged header for the end."""
    if not end or end > shard.stat().st_size:
        return False
    with open_regular(shard) as file:
        file.seek(end)
        return not any(file.read(_BLOCK))


def _grouped(members: Sequence[tuple[str, Place]]) -> Iterator[tuple[str, dict[str, Place]]]:
    """Examples by WebDataset's convention: a stem reaches to the first dot of the file's name."""
    groups: dict[str, dict[str, Place]] = {}
    for name, place in members:
        folder, _, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if stem:
            groups.setdefault(f"{folder}/{stem}" if folder else stem, {})[f".{suffix.lower()}"] = place
    yield from groups.items()


def _example(shard: Path, key: str, parts: dict[str, Place], field: str | None) -> Example:
    picture = next((place for suffix, place in parts.items() if suffix in PICTURES), None)
    return Example(
        f"{shard.name}/{key}",
        partial(fail, "picture missing") if picture is None else partial(_slice, picture),
        partial(_captions, parts.get(".json"), parts.get(".txt"), field),
    )


def _slice(place: Place) -> bytes:
    shard, offset, size = place
    try:
        with open_regular(shard) as file:
            file.seek(offset)
            data = file.read(size)
    except (InputError, OSError) as error:
        raise Unusable("file missing or not readable") from error
    if len(data) < size:
        raise Unusable("shard damaged")
    return data


def _captions(json_place: Place | None, text_place: Place | None, field: str | None) -> list[str]:
    """From the text if there is one and no field was asked for, else from the JSON."""
    if text_place is not None and (field is None or json_place is None):
        return [decoded(_slice(text_place))]
    if json_place is None:
        raise Unusable("caption missing")
    return row_captions(parse_row(_slice(json_place)), field)
