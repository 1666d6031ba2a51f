"""Enlarging of clients' images: in a process of its own, one after the other."""

import asyncio
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from ssd1b.actions.upscale import Enlarged, Upscaler
from ssd1b.errors import UnavailableError
from ssd1b.inputs import InputFile
from ssd1b.jobs.worker import end_with_parent
from ssd1b.server.errors import DeadlineError, QueueFullError

IDLE = 60.0
"""Seconds after which the process ends that has nothing to do; it takes a few to start."""


class Upscaling:
    """A process that enlarges images.

    The process starts with the first image. It is terminated when the client of the current image
    disconnects, so that other clients do not wait for it.

    Args:
        device: where networks run; None for the accelerator, or else the CPU.
        most: images that may wait.
        seconds: that one image may take, without waiting.
    """

    def __init__(self, device: str | None, most: int, seconds: float) -> None:
        self._device, self._most, self._seconds = device, most, seconds
        self._pool: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._since = time.monotonic()

    async def enlarge(
        self, data: bytes, by: str | InputFile, scale: float | None = None, **options: Any
    ) -> Enlarged:
        """Enlarge an image file.

        Args:
            data: PNG, JPEG or WebP.
            by: as ``Upscaler.load`` takes it; files are located.
            scale: as there.
            options: of ``Upscaler.enlarged``.

        Raises:
            InputError: see both.
            QueueFullError: too many images wait.
            DeadlineError: it takes too long.
        """
        if self._waiting >= self._most:
            message = (
                f"{self._waiting} images wait to be enlarged, and at most {self._most} may: try again later"
            )
            raise QueueFullError(message, 1.0)
        self._waiting += 1
        try:
            async with self._turn:
                return await self._run(data, by, scale, options)
        finally:
            self._waiting -= 1

    async def _run(
        self, data: bytes, by: str | InputFile, scale: float | None, options: Mapping[str, Any]
    ) -> Enlarged:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start)
        work = self._pool.submit(_enlarge, data, by, scale, self._device, dict(options))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self._seconds)
        except BrokenProcessPool:
            self.close()
            raise UnavailableError("the process that enlarges images ended unexpectedly") from None
        except TimeoutError:
            self.close()
            raise DeadlineError(f"the image took longer than {self._seconds:g} seconds") from None
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._since = time.monotonic()

    def end_idle(self) -> None:
        """End the process if it has had nothing to do for ``IDLE`` seconds."""
        if not self._waiting and time.monotonic() - self._since > IDLE:
            self.close()

    def close(self) -> None:
        """End the process at once."""
        pool, self._pool = self._pool, None
        if pool is not None:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
                process.join()


# What follows runs in the process.


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    threading.Thread(target=end_with_parent, daemon=True).start()


def _enlarge(
    data: bytes, by: str | InputFile, scale: float | None, device: str | None, options: dict[str, Any]
) -> Enlarged:
    return Upscaler.load(by, scale, device=device).enlarged(data, **options)
