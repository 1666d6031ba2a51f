"""Bounds on time in tests: an algorithm that is quadratic or worse would take minutes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Check that the block takes this thread at most so many seconds of the processor.

    Other threads, of this test or an earlier one, and other processes do not count.
    """
    begin = time.thread_time()
    yield
    took = time.thread_time() - begin
    assert took < seconds, f"{took:.1f} s of processor time"
