"""Wait in tests for what another thread or process does."""

import time
from collections.abc import Callable

PATIENCE = 120.0
"""Seconds until a test gives up; the machine may be busy."""


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
