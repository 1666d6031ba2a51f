"""Streams and signals of the process that runs the command line.

These are process-wide, so only the command ``ssd1b`` and ``python -m ssd1b`` set them; ``main`` can be called
in any process.
"""

import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from ssd1b.cli.app import INTERRUPTED, main, raised_by_signals
from ssd1b.errors import InputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end the process after cleaning up; Windows has no SIGHUP."""

SPINS = "10000"
"""Spins of a GNU OpenMP thread before it sleeps: about 0.1 ms, the time between two operations. The default
is thirty times as long, during which a waiting thread keeps a core that the last working one may need."""


_PYDANTIC = re.compile(r"[/\\]pydantic[/\\]")
"""Found in the name of each of pydantic's files."""


class _Output(io.FileIO):
    """Standard output, which may be full."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write; after a failure discard everything.

        Raises:
            BrokenPipeError: the reader is gone.
            InputError: writing failed for another reason.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            # Buffered text must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise InputError(f"cannot write to the standard output: {error.strerror}") from None


class _Messages(io.FileIO):
    """Standard error: a message that cannot be written must not stop the work."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write if possible."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def run() -> int:
    """Run the command line of this process, and return its exit code."""
    _open_streams()
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS  # read when torch is first imported
    _handle_signals()
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except SystemExit as ended:  # by a signal
        print("terminated", file=sys.stderr)  # noqa: T201
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        _waiting.clear()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt


def _open_streams() -> None:
    # A closed descriptor would be reused for the next file, and messages would be written into it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    encodings = [getattr(stream, "encoding", "utf-8") for stream in (sys.stdout, sys.stderr)]
    # Characters that the terminal lacks are escaped.
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(1, "w", closefd=False)), encodings[0], "backslashreplace",
        line_buffering=os.isatty(1),
    )  # fmt: skip
    raw: Any = _Messages(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(raw, encodings[1], "backslashreplace", write_through=True)


def _handle_signals() -> None:
    # Signals that are ignored, as under nohup, stay ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _raising(KeyboardInterrupt))
    for each in _ENDING:
        if signal.getsignal(each) is signal.SIG_DFL:
            signal.signal(each, _raising(SystemExit, 128 + each))
    sys.unraisablehook = _repeat


_waiting: set[int] = set()
"""Numbers of signals that are to be raised as soon as they can be."""

_sent_again: set[int] = set()
"""Those of ``_waiting`` that were sent again and did not arrive yet."""


def _raising(kind: type[BaseException], *arguments: object) -> Callable[[int, FrameType | None], None]:
    """Return a handler that raises an exception as soon as it cannot get lost (see ``_loses``)."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number in _sent_again:
            _sent_again.discard(number)
            if number not in _waiting:  # it was raised meanwhile
                return
        if _loses(frame):
            _raise_later(number)
        else:
            _waiting.discard(number)
            raised_by_signals.append(kind(*arguments))
            raise raised_by_signals[-1]

    return handle


def _loses(frame: FrameType | None) -> bool:
    """Return whether the frame was called by compiled code that would replace an exception.

    C++ that initialises a module may discard an exception, report another one, or abort the process; pydantic
    may report that a value is invalid.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap") or _PYDANTIC.search(
            frame.f_code.co_filename
        ):
            return True
        frame = frame.f_back
    return False


def _raise_later(number: int) -> None:
    if number not in _waiting:
        _waiting.add(number)
        threading.Thread(target=_send_again, args=(number,), daemon=True).start()


def _send_again(number: int) -> None:
    """Send a signal to the main thread until it was raised.

    Python would not notice one that arrives just before a system call begins to wait.
    """
    while True:
        time.sleep(0.005)
        if number not in _waiting:
            return
        _sent_again.add(number)
        if sys.platform == "win32":
            signal.raise_signal(number)
        else:  # what the main thread waits for must end, too
            signal.pthread_kill(threading.main_thread().ident or 0, number)


def _repeat(ignored: "sys.UnraisableHookArgs") -> None:
    """Repeat an interrupt that Python could not raise: in a destructor or in a callback."""
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        _raise_later(signal.SIGINT)
    else:
        sys.__unraisablehook__(ignored)
