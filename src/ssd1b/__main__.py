"""``python -m ssd1b``, and the command ``ssd1b``."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def run() -> int:
    """Run the command line of this process, and return its exit code."""
    try:
        import signal

        # During imports there is nothing to clean up, and a KeyboardInterrupt might get lost.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda number, frame: _leave())
        from ssd1b.cli import process
    except KeyboardInterrupt:
        _leave()
    return process.run()


def _leave() -> "NoReturn":
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    raise SystemExit(run())
