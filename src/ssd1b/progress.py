"""Progress of long work: a bar with the time left on a terminal, and a line now and then in a log file."""

import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tqdm import tqdm

SECONDS = 30.0
"""Between two lines where no terminal shows a bar. Shorter work prints none."""


class _Lines(tqdm):  # pyright: ignore[reportMissingTypeArgument] (generic in the stubs only)
    """Whole lines instead of a bar that is drawn over itself."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print a line, except the empty one that erases a bar."""
        if msg != "":
            self.fp.write(f"{self}\n")


def above_bar() -> AbstractContextManager[None]:
    """Make a context in which lines are printed above the bar of a terminal."""
    return tqdm.external_write_mode() if sys.stderr.isatty() else nullcontext()


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    label: str | None = None,
    unit: str = "it",
    start: int = 0,
    keep: bool = False,
    hidden: bool = False,
    style: str | None = None,
) -> "tqdm[Any]":
    """Make the progress bar of a task, written to standard error.

    Args:
        items: iterated over through the bar; None to call its ``update``.
        total: number of items; None for ``len(items)``, or if it is unknown.
        label: printed before the bar.
        unit: what an item is, in the singular.
        start: number of items done earlier.
        keep: leave the finished bar on the terminal.
        hidden: show nothing.
        style: tqdm's ``bar_format``.
    """
    common: dict[str, Any] = {
        "total": total, "desc": label, "unit": unit, "initial": start, "disable": hidden,
    }  # fmt: skip
    if sys.stderr.isatty():
        return tqdm(items, leave=keep, bar_format=style, **common)
    # The monitor would set the interval back to its own maximum.
    return _Lines(
        items, leave=False, ncols=0, bar_format=style, delay=SECONDS, mininterval=SECONDS,
        maxinterval=SECONDS, **common,
    )  # fmt: skip


def update_unmeasured(bar: "tqdm[Any]") -> None:
    """Count an item that says nothing about the time of the others, such as a first step that compiles."""
    bar.n += 1
    bar.initial = bar.last_print_n = bar.n
    bar.last_print_t = time.time()
    if not isinstance(bar, _Lines):
        bar.refresh()
