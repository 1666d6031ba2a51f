"""What all tests share: no network, no clock in property tests, full-size models only when asked for."""

import os
from typing import Any

import pytest
from hypothesis import settings

from rounds import rounds

# Several test processes share the cores: one thread each, or OpenMP's would wait for each other. With one
# process, too: sums of several threads are rounded otherwise. Set before torch is imported, and so that
# programs which the tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Commands that the tests start would compile every module again, a tenth of a second each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-size", action="store_true", help="run the tests that build models at full size")
    thorough = "repeat random damage, kills and examples often instead of a few times"
    parser.addoption("--thorough", action="store_true", help=thorough)
    seconds = "try each target of tests/fuzz for so many seconds; by default one round, the same in every run"
    parser.addoption("--fuzz-seconds", type=float, default=0.0, help=seconds)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--thorough"):
        os.environ["SSD1B_THOROUGH"] = "1"  # before the tests are imported, here and in other processes
    # Whether an example is found must depend neither on how busy the machine is nor on chance: a change that
    # is innocent must not fail. ``--thorough`` looks for new examples.
    settings.register_profile(
        "ssd1b", deadline=None, max_examples=rounds(50, 200), derandomize=not config.getoption("--thorough")
    )
    settings.load_profile("ssd1b")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Failures(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a file in one process, which makes what they share once.

    Those of a cluster run in one process, too: two clusters would starve each other. ``--dist loadgroup``
    does the same by a mark, but has no effect with pytest 9.2 and xdist 3.8. They come first, since they take
    minutes, in which the other processes would have nothing left to do.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "cluster" if nodeid.startswith("tests/unit/cluster/") else nodeid.split("::")[0]

        def _assign_work_unit(self, node: Any) -> None:
            if "cluster" in self.workqueue:
                self.workqueue.move_to_end("cluster", last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)


class Failures:
    """Says at once which test failed, for the reader of a run that is cut off before its end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            reason = report.longreprtext.strip().splitlines()[-1:]
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when}): {' '.join(reason)[:300]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("SSD1B_NO_BROWSER"):
        terminalreporter.write_line("SSD1B_NO_BROWSER is set: the tests in a browser were left out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full-size"):
        return
    skip = pytest.mark.skip(reason="builds a model at its published size: run with --full-size")
    for item in items:
        if "full_size" in item.keywords:
            item.add_marker(skip)
