"""Datasets of Hugging Face's ``datasets`` library on disk."""

from functools import partial
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, UnavailableError, shown, unknown
from ssd1b.extras import install
from ssd1b.files import check_regular, reason
from ssd1b.training.data.examples import (
    CAPTION_FIELDS,
    Columns,
    Example,
    Unusable,
    read_inside,
    row_captions,
    with_suffix,
)
from ssd1b.weights.files import read_json

_SAVED = ("state.json", "dataset_dict.json")
"""Files that ``save_to_disk`` writes for a single split, and for several."""


def is_table(path: Path) -> bool:
    """Return whether ``table_examples`` reads this path."""
    saved = any((path / name).is_file() for name in _SAVED)
    return saved or path.suffix.lower() == ".parquet" or bool(_parquet_in(path))


def _parquet_in(path: Path) -> list[Path]:
    return with_suffix(path, ".parquet") if path.is_dir() else []


def table_examples(path: Path, columns: Columns, cache: Path) -> list[Example]:
    """List the rows of a dataset.

    Args:
        path: a folder that ``save_to_disk`` wrote, a parquet file, or a folder of parquet files.
        columns: names of the columns, and the split.
        cache: folder for the rows of parquet files in Arrow's format, which has random access.

    Raises:
        InputError: the library is missing, the data cannot be read, or there is no such column or split.
    """
    dataset = _open(path, columns.split, cache)
    names = dataset.column_names
    if columns.image not in names:
        raise unknown("image column", columns.image, names)
    caption = columns.caption or next((name for name in CAPTION_FIELDS if name in names), CAPTION_FIELDS[0])
    if caption not in names:
        raise unknown("caption column", caption, names)
    captions = dataset.select_columns([caption])
    pictures = dataset.select_columns([columns.image])
    controls = dataset.select_columns([columns.control]) if columns.control in names else None
    return [
        Example(
            f"row {index}",
            partial(_picture, pictures, index, columns.image, path),
            partial(_captions, captions, index, caption),
            control=None if controls is None else partial(_picture, controls, index, columns.control, path),
        )
        for index in range(len(dataset))
    ]


def _open(path: Path, split: str, cache: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        command = install(["datasets"])
        raise UnavailableError(f"{path} needs the datasets library: {command}") from error
    datasets.disable_progress_bars()
    try:
        if any((path / name).is_file() for name in _SAVED):
            _check_saved(path)
            dataset = datasets.load_from_disk(str(path))
        else:
            for file in _parquet_in(path) or [path]:
                check_regular(file)
            files: list[Any] = [str(file) for file in _parquet_in(path) or [path]]
            dataset = datasets.Dataset.from_parquet(files, cache_dir=str(cache / "parquet"))
    except InputError:
        raise
    # The library lets exceptions of Arrow, fsspec and its readers through.
    except Exception as error:
        said = reason(error) or type(error).__name__
        raise InputError(f"{path} cannot be read as a dataset: {said}") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise unknown("split", split, map(str, dataset))
        dataset = dataset[split]
    # The hash needs the bytes of image files, not decoded images.
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def _check_saved(path: Path) -> None:
    """Check that a saved dataset names no files outside of it.

    Raises:
        InputError: it does.
    """
    names: list[Any] = []
    folders = [path]
    if (path / _SAVED[1]).is_file():
        splits = read_json(path / _SAVED[1]).get("splits")
        names += splits if isinstance(splits, list) else []
        folders = [path / each for each in names if isinstance(each, str)]
    for folder in folders:
        if (folder / _SAVED[0]).is_file():
            files = read_json(folder / _SAVED[0]).get("_data_files")
            names += [each.get("filename") for each in files if isinstance(each, dict)] if files else []
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise InputError(f"{path} names {shown(name)}, which is not inside the data: refused")


def _picture(dataset: Any, index: int, column: str, path: Path) -> bytes:
    value = dataset[index][column]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        folder = path if path.is_dir() else path.parent
        return read_inside(folder, folder, value, f"row {index} of {path}")
    if not isinstance(value, bytes):
        raise Unusable("picture missing")
    return value


def _captions(dataset: Any, index: int, column: str) -> list[str]:
    return row_captions(dataset[index], column)
