"""Fixtures for tests of the server."""

import pytest


@pytest.fixture
def fuzz_examples(request: pytest.FixtureRequest) -> int:
    """Requests for each operation: few in every run, many with ``--fuzz-seconds``."""
    return 300 if request.config.getoption("--fuzz-seconds") else 8
