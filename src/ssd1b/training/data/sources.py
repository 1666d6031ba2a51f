"""Sources of captioned images, listed as examples in a fixed order.

Listing opens no image. Problems of the whole source are an ``InputError``.
"""

from pathlib import Path

from ssd1b.errors import NotFoundError
from ssd1b.files import check_path
from ssd1b.picture_names import PICTURES
from ssd1b.training.data.examples import Columns, Example, with_suffix
from ssd1b.training.data.folders import METADATA, folder_examples
from ssd1b.training.data.shards import expand_braces, shard_examples
from ssd1b.training.data.tables import is_table, table_examples


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
        examples = folder_examples(where, columns.caption)
    if not examples:
        suffixes = ", ".join(PICTURES)
        raise NotFoundError(f"{where}: contains no images ({suffixes}), {METADATA}, .tar or .parquet")
    return examples
