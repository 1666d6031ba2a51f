"""Arrays that are slow to make and read many times, kept in shards on disk."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ssd1b.saving import replacing

SHARD = 1024
"""Items per file: what is lost when the making is interrupted."""


def _read(path: Path) -> NDArray | None:
    """Map a shard into memory; None if there is none, or half of one."""
    if not path.is_file():
        return None
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError):
        return None


class Shards:
    """Items of one shape by index, mapped from files; made where they are missing.

    The folder's name must tell everything that decides its content, since a shard that is there is believed.
    """

    def __init__(self, folder: Path, count: int, make: Callable[[range], NDArray], *, label: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._parts = []
        for start in tqdm(range(0, count, SHARD), desc=label, unit="shard", disable=None):
            path = folder / f"{start:08d}.npy"
            part = _read(path)
            if part is None:
                # By way of memory: NumPy does not say why a disk refused.
                items = io.BytesIO()
                np.save(items, make(range(start, start + SHARD)))
                with replacing(path) as aside:
                    aside.write_bytes(items.getbuffer())
                part = np.load(path, mmap_mode="r")
            self._parts.append(part)

    def __len__(self) -> int:
        return len(self._parts) * SHARD

    def __getitem__(self, indices: NDArray[np.integer]) -> NDArray:
        """Gather items, ``[len(indices), ...]``."""
        return np.stack([self._parts[index // SHARD][index % SHARD] for index in indices])
