"""Streams and signals of the process that runs the command line.

These are process-wide, so only the command ``ssd1b`` and ``python -m ssd1b`` set them; ``main`` can be called
in any process.
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
"""Signals that end the process after cleaning up; Windows has no SIGHUP."""

SPINS = "10000"
"""Spins of a GNU OpenMP thread before it sleeps: about 0.1 ms, the time between two operations. The default
is thirty times as long, during which a waiting thread keeps a core that the last working one may need."""


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


class _Interrupts:
    """Handler of Ctrl-C that remembers it, because an interrupted import may end with another error."""

    happened = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
        raise KeyboardInterrupt

    def lost(self, ignored: "sys.UnraisableHookArgs") -> None:
        """Repeat an interrupt that Python could not raise: in a destructor or in a callback."""
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, signal.raise_signal, (signal.SIGINT,)).start()
        else:
            sys.__unraisablehook__(ignored)


def run() -> int:
    """Run the command line of this process, and return its exit code."""
    _open_streams()
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS  # read when torch is first imported
    interrupts = _Interrupts()
    _handle_signals(interrupts)
    try:
        return main(was_interrupted=lambda: interrupts.happened)
    except SystemExit as ended:  # by a signal
        print("terminated", file=sys.stderr)  # noqa: T201
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        if not interrupts.happened:
            raise
        print("interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    finally:
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


def _handle_signals(interrupts: _Interrupts) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # Signals that are ignored, as under nohup, stay ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupts)
        sys.unraisablehook = interrupts.lost
    for each in _ENDING:
        if signal.getsignal(each) is signal.SIG_DFL:
            signal.signal(each, end)
