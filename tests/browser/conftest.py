"""A real browser: Chromium, driven by Playwright. Without one these tests fail and say what installs it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from browsers import find_browser, how_to_install
from waiting import PATIENCE

LEFT_OUT = "SSD1B_NO_BROWSER"
"""The variable that leaves these tests out, where no browser can be had."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            if os.environ.get(LEFT_OUT):
                item.add_marker(pytest.mark.skip(reason=f"{LEFT_OUT} is set: no browser is tried"))
            # Playwright talks to its driver through sockets of this machine.
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(autouse=True)
def _patient() -> None:
    expect.set_options(timeout=1000 * PATIENCE)


# Not for the whole session: while it is open, Playwright's event loop runs in this thread, and no other
# test of this process could run a loop of its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        if path is None:
            pytest.fail(
                f"no Chromium was found: {how_to_install()} (or {LEFT_OUT}=1 to leave the browser tests out)",
                pytrace=False,
            )
        # Where tests run as root, chromium's sandbox cannot.
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def new_context(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """``new_context(**options)`` is a browser without history, with patience."""
    contexts = []

    def make(**options: Any) -> BrowserContext:
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(1000 * PATIENCE)
        return contexts[-1]

    yield make
    for each in contexts:
        each.close()


@pytest.fixture
def visit(new_context: Callable[..., BrowserContext]) -> Iterator[Callable[..., Page]]:
    """``visit(path, **context)`` opens a page; nothing may be fetched, and nothing go wrong."""
    wrong: list[str] = []
    fetched: list[str] = []

    def open_page(path: Path, **context: object) -> Page:
        page = new_context(**context).new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    assert wrong == []
    assert fetched and all(url.startswith(("file:", "data:")) for url in fetched)
