"""Shards: some hundred rows whose images are written together, once, as a WebDataset tar or a folder.

A shard's name contains a hash of everything in it. Its images are written aside and published by a rename (an
upload, for object stores). The shard's part of the manifest is written last: while it is missing, the shard
does not exist. So the same rows give the same files, and a second run skips what is there.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast

from PIL import Image

from ssd1b.bulk.rows import Row
from ssd1b.errors import ConflictError, InputError, unknown
from ssd1b.files import disk_error, named, reason
from ssd1b.images import Picture, decode_recipe, encode_picture
from ssd1b.inputs import digest_of
from ssd1b.jobs.job import Job
from ssd1b.jobs.store import DONE, FAILED, Outcome, Store
from ssd1b.recipe import Recipe, write_json
from ssd1b.saving import check_folder, replacing

Write: TypeAlias = Callable[[str, Mapping[str, bytes]], tuple[str, int]]

VERSION = 1
"""Of the files' content, and part of each shard's hash."""

FORMATS = ("png", "webp")
"""Image formats that have room for every recipe."""

ARRANGEMENTS = {"webdataset": "shards", "folder": "pictures"}
"""How a shard is stored, a tar or a folder, with the folder that shards of that kind are in."""

_MANIFEST = "manifest"
_PUBLISHED = (".parquet", ".tar", "")
"""Suffixes of a shard's part of the manifest, its tar or its folder; temporary files have others."""

_KEPT = "kept_"
"""Begins the names of copied columns in the manifest, so that they hide none of its own."""

_KEPT_IMAGES = "; the images generated so far are kept, and the same command continues"
_BLOCK = 512
"""Bytes of a tar's header."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows.

    Attributes:
        index: the shard's position.
        rows: in their order.
        jobs: of each row, by its number; rows with an error have none.
    """

    index: int
    rows: Sequence[Row]
    jobs: dict[int, Job]

    def name(self, *decisive: str) -> str:
        """The name: its index, and a hash of everything that decides its files.

        Args:
            *decisive: what else decides them: format and arrangement.
        """
        content = [VERSION, *decisive, *([row, self.jobs[row.number].key if row.number in self.jobs else None]
                                    for row in self.rows)]  # fmt: skip
        digest = hashlib.sha256(json.dumps(content, default=digest_of).encode()).hexdigest()
        return f"{self.index:06d}-{digest[:16]}"


def index_of(name: str) -> int:
    """The index in a shard's name; -1 if the name is not of a shard."""
    index = name.partition("-")[0]
    return int(index) if index.isdecimal() else -1


def divide(rows: Iterable[Row], size: int) -> Iterator[tuple[int, list[Row]]]:
    """Divide rows into shards of ``size``, with their indices; the last one may be smaller."""
    stream = iter(rows)
    index = 0
    while found := list(islice(stream, size)):
        yield index, found
        index += 1


class Destination:
    """A folder on a disk or in an object store, by fsspec.

    Args:
        url: a path or a URL such as ``s3://bucket/folder``.
        arrangement: of ``ARRANGEMENTS``.
        form: of ``FORMATS``.
        keep: columns of the rows that are copied to the manifest.
        work: folder on a local disk for files that are uploaded.

    Raises:
        InputError: there is no such arrangement, format or file system, a library is missing, or the folder
            cannot be written.
    """

    def __init__(self, url: str, arrangement: str, form: str, keep: Iterable[str], work: Path) -> None:
        if arrangement not in ARRANGEMENTS:
            raise unknown("arrangement", arrangement, ARRANGEMENTS)
        if form not in FORMATS:
            raise unknown("image format", form, FORMATS)
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        try:
            self._files, self.root = cast("Any", fsspec).url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(f"cannot write to {named(url)}: {reason(error)}") from None
        self._is_local = isinstance(self._files, LocalFileSystem)
        if self._is_local:
            check_folder(Path(self.root))
        self._arrangement, self._form, self._keep = arrangement, form, keep
        self._work = work

    def published(self) -> set[str]:
        """The names of the shards that are complete.

        Raises:
            InputError: they have another arrangement, so that the manifest would have each row twice.
        """
        names = self._names(_MANIFEST)
        for other in ARRANGEMENTS.keys() - {self._arrangement}:
            if names and names & self._names(ARRANGEMENTS[other]):
                raise ConflictError(
                    f"{named(self.root)} has images of --as {other}, and its manifest describes them: choose "
                    f"another --out for {self._arrangement}"
                )
        return names

    def _names(self, folder: str) -> set[str]:
        """The names of the shards in a folder."""
        with self._errors(folder):
            path = f"{self.root}/{folder}"
            if not self._files.exists(path):
                return set()
            self._files.invalidate_cache()
            return {
                Path(each).stem
                for each in self._files.ls(path, detail=False)
                if Path(each).suffix in _PUBLISHED
            }

    def failures(self, name: str) -> list[str]:
        """The reasons of all failures in a published shard."""
        from pyarrow.parquet import read_table

        with self._errors(_MANIFEST), self._files.open(self._manifest(name), "rb") as file:
            found = read_table(file, columns=["state", "error"]).to_pylist()
        return [entry["error"] for entry in found if entry["state"] == FAILED]

    def name(self, shard: Shard) -> str:
        """The shard's name here."""
        return shard.name(self._form, self._arrangement)

    def publish(self, shard: Shard, store: Store) -> list[str]:
        """Write a shard's images, then its part of the manifest.

        Args:
            shard: its jobs are finished.
            store: has their images and outcomes.

        Returns:
            The reasons of all failures.

        Raises:
            InputError: the disk or the object store refused.
        """
        name = self.name(shard)
        outcomes = store.outcomes(job.key for job in shard.jobs.values())
        entries: list[dict[str, Any]] = []
        with self._examples(name) as write:
            for row in shard.rows:
                entry = _entry(row, shard.jobs.get(row.number), outcomes)
                if entry["state"] == DONE:
                    files = _files(row, store.picture(entry["key"]), entry, self._form)
                    entry["file"], entry["offset"] = write(f"{row.number:09d}", files)
                    picture = files[self._form]
                    entry |= {"size": len(picture), "sha256": hashlib.sha256(picture).hexdigest()}
                entries.append(entry)
        self._write_manifest(name, entries)
        return [entry["error"] for entry in entries if entry["state"] == FAILED]

    @contextmanager
    def _examples(self, name: str) -> Generator[Write, None, None]:
        """Yield a function that writes the files of one row, and returns where the first of them begins."""
        place = f"{ARRANGEMENTS[self._arrangement]}/{name}"
        if self._arrangement == "folder":

            def write_files(stem: str, files: Mapping[str, bytes]) -> tuple[str, int]:
                for suffix, data in files.items():
                    with self._publishing(f"{place}/{stem}.{suffix}") as path:
                        path.write_bytes(data)
                return f"{place}/{stem}.{next(iter(files))}", 0

            yield write_files
            return

        place += ".tar"
        with self._publishing(place) as path, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:

            def write_members(stem: str, files: Mapping[str, bytes]) -> tuple[str, int]:
                begin = tar.offset + _BLOCK  # after the header
                for suffix, data in files.items():
                    # Without a time and an owner, so that the same images give the same bytes.
                    member = tarfile.TarInfo(f"{stem}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                return place, begin

            yield write_members

    def _write_manifest(self, name: str, entries: Sequence[dict[str, Any]]) -> None:
        import pyarrow
        from pyarrow.parquet import write_table

        text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
        columns: dict[str, Any] = {
            "row": whole, "id": text, "key": text, "state": text, "error": text, "prompt": text,
            "seed": whole, "file": text, "offset": whole, "size": whole, "sha256": text, "passes": real,
            "metrics": pyarrow.map_(text, real), "recipe": text,
        }  # fmt: skip
        columns |= {f"{_KEPT}{column}": text for column in self._keep}
        table = pyarrow.Table.from_pylist(list(entries), schema=pyarrow.schema(list(columns.items())))
        with self._publishing(f"{_MANIFEST}/{name}.parquet") as path:
            write_table(table, path, compression="zstd")

    def _manifest(self, name: str) -> str:
        return f"{self.root}/{_MANIFEST}/{name}.parquet"

    @contextmanager
    def _publishing(self, name: str) -> Generator[Path, None, None]:
        """Yield a local path to write; afterwards it gets its name at the destination, complete."""
        target = f"{self.root}/{name}"
        if self._is_local:
            try:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                with replacing(Path(target), self._unfinished(Path(target))) as aside:
                    yield aside
            except OSError as error:
                raise disk_error(f"cannot write {named(target)}", error, _KEPT_IMAGES) from None
            return
        handle, local = tempfile.mkstemp(dir=self._work)
        os.close(handle)
        try:
            yield Path(local)
            with self._errors(name):
                self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._files.put_file(local, target)
        finally:
            os.unlink(local)

    def _unfinished(self, target: Path) -> Path:
        """Where a file is written first: by name, so that the run after a killed one overwrites what it left.

        The work folder is part of the name, because two runs from different ones may write the same shard.
        """
        writer = hashlib.sha256(str(self._work.resolve()).encode()).hexdigest()[:8]
        return target.with_name(f".{target.name}.{writer}.partial")

    @contextmanager
    def _errors(self, name: str) -> Generator[None, None, None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # each file system has its own
            raise disk_error(f"cannot use {named(f'{self.root}/{name}')}", error) from None


def _entry(row: Row, job: Job | None, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "row": row.number, "id": row.id, "state": FAILED, "error": row.error, "prompt": row.prompt,
        **{f"{_KEPT}{column}": value for column, value in row.kept.items()},
    }  # fmt: skip
    if job is not None:
        outcome = outcomes[job.key]
        entry |= {
            "key": job.key, "state": outcome.state, "error": outcome.error, "seed": job.settings.seed,
            "passes": outcome.passes, "metrics": sorted((outcome.metrics or {}).items()),
        }  # fmt: skip
    return entry


def _files(row: Row, path: Path, entry: dict[str, Any], form: str) -> dict[str, bytes]:
    """The image file, its caption, and a JSON object with its description, by suffix."""
    data = path.read_bytes()
    recipe = decode_recipe(data)
    assert isinstance(recipe, Recipe)
    if form != "png":
        with Image.open(io.BytesIO(data)) as image:
            data = encode_picture(Picture(image=image.convert("RGB"), recipe=recipe), form)
    entry["recipe"] = write_json(recipe)
    facts: dict[str, Any] = {
        **row.kept, "id": row.id, "prompt": row.prompt, "key": entry["key"],
        "settings": asdict(recipe.settings), "metrics": dict(entry["metrics"]),
    }  # fmt: skip
    return {form: data, "txt": row.prompt.encode(), "json": json.dumps(facts).encode()}
