"""The process around the command line: its streams and its signals.

``main`` can be called in anybody's process. What is set here belongs to the whole process, so it is set only
by the command ``ssd1b`` and ``python -m ssd1b``.
"""

import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from ssd1b.cli.app import INTERRUPTED, main
from ssd1b.errors import InputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end the process after it has cleaned up; Windows knows no SIGHUP."""


SPINS = "10000"
"""How often a thread of GNU OpenMP looks whether the others are done before it sleeps: about a tenth of a
millisecond, which is the time between two operations. It would be thirty times as long, during which a thread
beside another busy process keeps the core that the last one needs."""


class _Output(io.FileIO):
    """The standard output, which may be full."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write, or give up on the standard output for good.

        Raises:
            BrokenPipeError: the reader has left.
            InputError: it cannot be written to, for another reason.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            # What is still buffered must not fail again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise InputError(f"cannot write to the standard output: {error.strerror}") from None


class _Messages(io.FileIO):
    """The standard error: a message that cannot be written must not stop the work that it tells of."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write as much as can be written."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _Interrupts:
    """Ctrl-C, remembered, because an import that it cuts short may end with another error."""

    happened = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
        raise KeyboardInterrupt

    def lost(self, ignored: "sys.UnraisableHookArgs") -> None:
        """Come again where Python could not raise: in a destructor or in a callback."""
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, signal.raise_signal, (signal.SIGINT,)).start()
        else:
            sys.__unraisablehook__(ignored)


def run() -> int:
    """Run the command line of this process; gives its exit code."""
    _open_streams()
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS  # read when torch is first imported
    interrupts = _Interrupts()
    _handle_signals(interrupts)
    try:
        return main()
    except SystemExit as ended:  # by a signal
        print("terminated", file=sys.stderr)  # noqa: T201
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        if not interrupts.happened:
            raise
        print("interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt


def _open_streams() -> None:
    # A closed descriptor would become the next file's, and messages of libraries would be written into it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    encodings = [getattr(stream, "encoding", "utf-8") for stream in (sys.stdout, sys.stderr)]
    # Letters that the terminal does not have are written as escapes.
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(1, "w", closefd=False)), encodings[0], "backslashreplace",
        line_buffering=os.isatty(1),
    )  # fmt: skip
    raw: Any = _Messages(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(raw, encodings[1], "backslashreplace", write_through=True)


def _handle_signals(interrupts: _Interrupts) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # What is ignored, as in the background of a shell or under nohup, stays ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupts)
        sys.unraisablehook = interrupts.lost
    for each in _ENDING:
        if signal.getsignal(each) is signal.SIG_DFL:
            signal.signal(each, end)
