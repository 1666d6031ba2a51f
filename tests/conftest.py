"""What all tests share: no network, no clock in property tests, full-size models only when asked for."""

import pytest
from hypothesis import settings

# Whether an example is found must not depend on how busy the machine is.
settings.register_profile("ssd1b", deadline=None)
settings.load_profile("ssd1b")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-size", action="store_true", help="run the tests that build models at full size")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full-size"):
        return
    skip = pytest.mark.skip(reason="builds a model at its published size: run with --full-size")
    for item in items:
        if "full_size" in item.keywords:
            item.add_marker(skip)
