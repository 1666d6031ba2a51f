"""A disk cache, in shards, of arrays that are slow to compute and read many times."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd1b.progress import progress_bar
from ssd1b.saving import replacing

SHARD = 1024
"""Number of items per file; an interruption loses at most one file."""


def _read(path: Path) -> NDArray[Any] | None:
    """Map a shard into memory; None if it is missing or incomplete."""
    if not path.is_file():
        return None
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError):
        return None


class Shards:
    """Items of one shape by index, mapped from files that are created if missing.

    Existing shards are not checked, so the folder's name must identify everything that decides their content.
    """

    def __init__(
        self, folder: Path, count: int, make: Callable[[range], NDArray[Any]], *, label: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._parts = []
        for start in progress_bar(range(0, count, SHARD), label=label, unit="shard", keep=True):
            path = folder / f"{start:08d}.npy"
            part = _read(path)
            if part is None:
                # Written from memory, since NumPy hides the reason of a disk error.
                items = io.BytesIO()
                np.save(items, make(range(start, start + SHARD)))
                with replacing(path) as aside:
                    aside.write_bytes(items.getbuffer())
                part = np.load(path, mmap_mode="r")
            self._parts.append(part)

    def __len__(self) -> int:
        return len(self._parts) * SHARD

    def __getitem__(self, indices: NDArray[np.integer]) -> NDArray[Any]:
        """Gather items, ``[len(indices), ...]``."""
        return np.stack([self._parts[index // SHARD][index % SHARD] for index in indices])
