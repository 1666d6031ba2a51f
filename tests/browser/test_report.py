"""The report in a real browser."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lab_cells import Fake, run, sweep
from ssd1b.jobs.store import Store
from ssd1b.lab.report import write_page
from ssd1b.lab.results import load_results

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def page(visit: Callable[..., Page], tmp_path: Path) -> Page:
    """The report of a small sweep."""
    out = tmp_path / "report.html"
    with closing(Store(tmp_path / "cells")) as store:
        run(store, sweep("guidance=2,5,9", "steps=3,4", "seed=1,200", prompts=(EVIL, "a cone")), Fake())
        write_page(load_results(store), store, out, metric="red")
    return visit(out)


def pictures(page: Page) -> int:
    return page.locator("#grid img").count()


def test_any_two_axes_make_the_grid_and_sliders_move_through_the_others(page: Page) -> None:
    assert pictures(page) == 6
    assert page.locator("#grid img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    sliders = page.locator("#sliders input")
    assert sliders.count() == 2
    before = page.locator("#grid img").first.get_attribute("src")
    seed = page.locator("#sliders label", has_text="seed").locator("input")
    seed.fill("1")
    expect(page.locator("#sliders label", has_text="seed").locator("output")).to_have_text("200")
    assert page.locator("#grid img").first.get_attribute("src") != before
    page.locator("#down").select_option(label="prompt")
    assert page.locator("#grid tr").nth(1).locator("th").inner_text() == f"prompt {EVIL}"
    page.locator("#across").select_option(label="prompt")
    assert pictures(page) == 6, "the two axes changed places"
    page.locator("#down").select_option(label="–")
    assert pictures(page) == 2


def test_a_picture_is_enlarged_compared_and_copied(page: Page) -> None:
    page.locator("#grid button").first.click()
    expect(page.locator("#enlarged")).to_be_visible()
    expect(page.locator("#wipe")).to_be_hidden()
    page.locator("#pin").click()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#wipe")).to_be_visible()
    expect(page.locator("#about")).to_have_text("left: guidance 2 · right: guidance 5")
    page.locator("#wipe").fill("25")
    assert page.locator("#stage").evaluate("stage => stage.style.getPropertyValue('--at')") == "25%"
    expect(page.locator("#settings")).to_contain_text("guidance_scale = 5.0")
    page.locator("#copy-command").click()
    expect(page.locator("#copied")).to_have_text("copied")
    page.keyboard.press("Escape")
    expect(page.locator("#enlarged")).to_be_hidden()
    assert page.locator("#grid .pinned").count() == 1


def test_the_table_sorts_by_a_click(page: Page) -> None:
    def column() -> list[str]:
        return page.locator(".figures tbody tr td:nth-child(2)").all_inner_texts()

    heading = page.locator(".figures th button", has_text="guidance")
    heading.click()
    assert column() == sorted(column(), key=float)
    heading.click()
    assert column() == sorted(column(), key=float, reverse=True)


def test_figures_are_there_without_scripts(visit: Callable[..., Page], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with closing(Store(tmp_path / "cells")) as store:
        run(store, sweep("guidance=2,5", "seed=1,2"), Fake())
        write_page(load_results(store), store, out, metric="red")
    page = visit(out, java_script_enabled=False)
    assert page.locator("svg").count() == 2
    expect(page.locator(".figures")).to_be_visible()


def test_in_a_narrow_window_names_and_curves_can_be_read(visit: Callable[..., Page], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with closing(Store(tmp_path / "cells")) as store:
        run(store, sweep("guidance=2,5,9", "steps=3,4"), Fake())
        write_page(load_results(store), store, out, metric="red")
    page = visit(out, viewport={"width": 400, "height": 800})
    heading = page.locator("#grid tr").nth(1).locator("th")
    assert heading.inner_text() == "steps 3"
    assert heading.bounding_box()["width"] >= 60, "not a letter a line"
    assert all(
        width >= 600
        for width in page.locator(".figure svg").evaluate_all(
            "all => all.map(each => each.getBoundingClientRect().width)"
        )
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
