"""A real browser: chromium, driven by Playwright; where it is not installed, these tests skip."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(
                pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
            )
            # Playwright talks to its driver through sockets of this machine.
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Where tests run as root, chromium's sandbox cannot.
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """``visit(path, **context)`` opens a page; nothing may be fetched, and nothing go wrong."""
    wrong: list[str] = []
    fetched: list[str] = []
    contexts = []

    def open_page(path: Path, **context: object) -> Page:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    assert wrong == []
    assert fetched and all(url.startswith(("file:", "data:")) for url in fetched)
    for context in contexts:
        context.close()
