"""Sources of captioned images, listed as examples in a fixed order.

Listing opens no image. Problems of the whole source are an ``InputError``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

from ssd1b.errors import InputError, NotFoundError
from ssd1b.files import check_path
from ssd1b.picture_names import PICTURES
from ssd1b.training.data.examples import Columns, Example, fail, read, with_suffix
from ssd1b.training.data.folders import METADATA, folder_examples, pictures_in
from ssd1b.training.data.shards import expand_braces, shard_examples
from ssd1b.training.data.tables import is_table, table_examples
from ssd1b.validation import Name, Range, validated

BESIDE, ALPHA, EDGES = "beside", "alpha", "edges"
"""Kinds of masks and control images: files beside the images, see ``picture_names``, or a column of a table;
the opacity of the images, for masks; their edges, for control images."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One of several sources of captioned images.

    Attributes:
        path: path of the source, see ``open_source``.
        repeats: how often its images are seen in a pass over the data.
        trigger: text in front of each caption that does not contain it.
        masks: "beside", "alpha", or a folder of masks with the images' names; None is no masks.
        controls: "beside", "edges", or a folder of control images with the images' names; None is none.
    """

    path: Name
    repeats: Annotated[int, Range(1, 10_000)] = 1
    trigger: Name | None = None
    masks: Name | None = None
    controls: Name | None = None


def open_sources(sources: Sequence[Source], columns: Columns, *, cache: Path) -> list[Example]:
    """List the captioned images of sources, one after the other; with several, keys begin with the path.

    Raises:
        InputError: as ``open_source``; there are no sources; or a folder of masks or control images is
            missing.
    """
    if not sources:
        raise InputError("no training data: name a folder, such as --data pictures")
    found: list[Example] = []
    for source in sources:
        prefix = f"{source.path}/" if len(sources) > 1 else ""
        examples = _with_masks(open_source(source.path, columns, cache=cache), source.masks)
        examples = _with_controls(examples, source.controls)
        found += [
            replace(
                each,
                key=prefix + each.key,
                repeats=each.repeats * source.repeats,
                trigger=source.trigger,
            )
            for each in examples
        ]
    return found


def _with_masks(examples: Sequence[Example], masks: str | None) -> list[Example]:
    """Give examples the masks of a kind or a folder; those beside the images that are not asked for go."""
    if masks == BESIDE:
        return [*examples]
    if masks == ALPHA:
        return [replace(each, mask=each.picture, alpha=True) for each in examples]
    there = {} if masks is None else pictures_in(Path(masks), "masks", (BESIDE, ALPHA))
    return [replace(each, mask=_reader(there, each)) for each in examples]


def _with_controls(examples: Sequence[Example], controls: str | None) -> list[Example]:
    """Give examples the control images of a kind or a folder; one without its control image is unusable."""
    if controls is None:
        return [replace(each, control=None) for each in examples]
    if controls == EDGES:
        return [replace(each, control=each.picture, edges=True) for each in examples]
    if controls != BESIDE:
        there = pictures_in(Path(controls), "controls", (BESIDE, EDGES))
        examples = [replace(each, control=_reader(there, each)) for each in examples]
    return [replace(each, control=each.control or partial(fail, "missing")) for each in examples]


def _reader(there: Mapping[str, Path], example: Example) -> Callable[[], bytes] | None:
    """Return the reader of the image that belongs to an example, see ``folders.pictures_in``."""
    key = PurePosixPath(example.key).with_suffix("").as_posix()
    return partial(read, there[key]) if key in there else None


def open_source(path: str | Path, columns: Columns, *, cache: Path) -> list[Example]:
    """List the captioned images of a source, whose kind follows from the path.

    - ``shards-{000..009}.tar``, a ``.tar`` file or a folder of them: WebDataset shards;
    - a ``.parquet`` file, a folder of them, or a dataset that the ``datasets`` library saved;
    - a folder with ``metadata.jsonl`` in or below it, as in Hugging Face's image folders;
    - any other folder: images in it and its subfolders, with captions in ``.txt`` files of the same stem.

    Args:
        path: of the source.
        columns: for tables and JSON.
        cache: folder for converted tables.

    Raises:
        InputError: there is no such source, it holds no images, or a library is missing.
    """
    check_path(path)
    shards = expand_braces(str(path))
    where = Path(path)
    if where.is_dir() and (inside := with_suffix(where, ".tar")):
        shards = inside
    if len(shards) > 1 or shards[0].suffix.lower() == ".tar":
        examples = shard_examples(shards, columns.caption)
    elif is_table(where):
        examples = table_examples(where, columns, cache)
    elif not where.is_dir():
        raise NotFoundError(f"{where}: no such folder, and no .tar or .parquet file")
    else:
        examples = folder_examples(where, columns)
    if not examples:
        suffixes = ", ".join(PICTURES)
        raise NotFoundError(f"{where}: contains no images ({suffixes}), {METADATA}, .tar or .parquet")
    return examples
