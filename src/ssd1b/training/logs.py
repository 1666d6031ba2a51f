"""The log of a run: lines of JSON, images, and TensorBoard if it is installed."""

import errno
import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ssd1b.files import check_regular, disk_error, named
from ssd1b.saving import replacing

FILE = "log.jsonl"
"""Name of the log in a run's folder."""

_ROOM = 2**19
"""Bytes that must be free on the disk."""

_Values = Mapping[str, float | Tensor]


class Log:
    """``log.jsonl``, ``pictures/`` and ``tensorboard/`` in a run's folder.

    Args:
        out: the folder.
        start: number of finished steps; lines of later steps are removed, since these are repeated.
        silent: write nothing; for all processes except the first.
    """

    def __init__(self, out: Path, start: int, *, silent: bool) -> None:
        self._out, self._start, self._silent = out, start, silent
        self._path = out / FILE
        self._window: list[Mapping[str, float]] = []
        self._clock = time.perf_counter()
        if self._path.exists() and not silent:
            # A run that starts again validates before its first step again.
            kept = [line for line in _lines(self._path) if start and 0 <= _step(line) <= start]
            with replacing(self._path) as aside:
                aside.write_text("".join(f"{line}\n" for line in kept))

    def add(self, terms: Mapping[str, float]) -> None:
        """Add the terms of a step to ``write_means``; a skipped step has none."""
        self._window.append(terms)

    def write_means(self, step: int, more: Mapping[str, float]) -> None:
        """Write each term's mean over the steps since the last call that have it, and the time per step."""
        seen: dict[str, list[float]] = defaultdict(list)
        for terms in self._window:
            for name, value in terms.items():
                seen[name].append(value)
        means = {name: math.fsum(values) / len(values) for name, values in seen.items()}
        seconds = (time.perf_counter() - self._clock) / len(self._window)
        self.write(step, {**means, **more, "seconds_per_step": seconds})
        self._window, self._clock = [], time.perf_counter()

    def write(self, step: int, values: _Values) -> None:
        """Write numbers, and images ``[3, H, W]`` with values from 0 to 1.

        Raises:
            InputError: the disk refused.
        """
        if self._silent:
            return
        numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        pictures = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        # JSON has no NaN; a mean of nothing is null.
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        try:
            # On a full disk TensorBoard's thread prints a traceback.
            if shutil.disk_usage(self._out).free < _ROOM:
                raise OSError(errno.ENOSPC, "no space left on the disk")
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
            for name, picture in pictures.items():
                with replacing(self._out / "pictures" / f"{name}-{step:08d}.png") as aside:
                    _image(picture).save(aside, "PNG")
            if self._board is not None:
                for name, value in numbers.items():
                    self._board.add_scalar(name, value, step)
                for name, picture in pictures.items():
                    self._board.add_image(name, picture, step)
                self._board.flush()
        except OSError as error:
            raise disk_error(f"cannot write the log in {named(self._out)}", error) from error

    @cached_property
    def _board(self) -> Any:
        """TensorBoard's writer, or None. It has a thread, so it starts after the reader is forked."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self._out / "tensorboard"), purge_step=self._start + 1)

    def close(self) -> None:
        """End TensorBoard's thread, if it was started."""
        board = self.__dict__.get("_board")
        if board is not None:
            with suppress(OSError):  # write has reported a full disk
                board.close()


def _lines(path: Path) -> list[str]:
    check_regular(path)
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _step(line: str) -> int:
    """Return the step of a line; -1 for one that was cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return -1
