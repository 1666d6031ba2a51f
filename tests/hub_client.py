"""``ssd1b`` in processes of its own, as huggingface_hub reads its environment when it is imported.

The processes are forked from one that has imported what takes seconds, and not huggingface_hub.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["ssd1b.cli.generate", "ssd1b.pipeline"])

HASTE = 40
"""By how much the waits between attempts are shortened."""


@dataclass(frozen=True)
class Done:
    """How a call ended; ``code`` is negative where a signal ended it."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that are our own."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class Call:
    """A call of the command line that is under way."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._files = [folder / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        self.process: BaseProcess = _FORKS.Process(
            target=_call, args=(folder, self._files, arguments, environment)
        )
        self.process.start()

    def interrupt(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGINT)

    def wait(self, seconds: float = 60) -> Done:
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"still running after {seconds} s: {self._files[1].read_text()}")
        assert self.process.exitcode is not None
        return Done(self.process.exitcode, *(file.read_text() for file in self._files))


class Resolver:
    """A process that does nothing but ``hub.resolve``, with a cache of one's choice each time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._pipe, far = _FORKS.Pipe()
        self.process: BaseProcess = _FORKS.Process(target=_resolve_all, args=(far, environment))
        self.process.start()
        far.close()

    def start(
        self, model: str, cache: Path, *, users_token: str = "", most: int | None = None, **given: bool
    ) -> None:
        """Begin to resolve a model.

        Args:
            model: as ``resolve`` takes it, and ``given`` with it.
            cache: the hub's.
            users_token: as HF_TOKEN has it.
            most: bytes beyond which no file may grow, as if the disk were full.
            **given: as ``resolve`` takes it.
        """
        self._pipe.send((model, str(cache), users_token, most, given))

    def result(self, seconds: float = 60) -> Done:
        """Wait for what was started."""
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"still running after {seconds} s")
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)
        self.process.join()


def _prepare(environment: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.update(environment)
    slowly = time.sleep
    time.sleep = lambda seconds: slowly(seconds / HASTE)


def _call(
    folder: Path, files: list[Path], arguments: tuple[str, ...], environment: Mapping[str, str]
) -> None:
    _prepare(environment)
    os.chdir(folder)
    for stream, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), stream)
    # Started in the background, as some build servers do, a process inherits that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["ssd1b", *arguments]
    from ssd1b.__main__ import run

    sys.exit(run())


def _resolve_all(pipe: Connection, environment: Mapping[str, str]) -> None:
    _prepare(environment)
    from huggingface_hub import constants, logging

    from ssd1b.errors import InputError
    from ssd1b.weights.hub import resolve

    logging.set_verbosity_error()
    constants.DOWNLOAD_CHUNK_SIZE = 2**16
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    while (asked := pipe.recv()) is not None:
        model, constants.HF_HUB_CACHE, os.environ["HF_TOKEN"], most, given = asked
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if most is None else most, hard))
        try:
            done = Done(0, str(resolve(model, **given).path), "")
        except InputError as error:
            done = Done(2, "", f"error: {error}\n")
        except BaseException:
            done = Done(1, "", traceback.format_exc())
        pipe.send(done)
