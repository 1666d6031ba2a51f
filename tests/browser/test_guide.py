"""The guide's page in a real browser."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page

from lab_cells import FAKE, drawing, run
from ssd1b.jobs.store import Store
from ssd1b.lab.claims import CLAIMS
from ssd1b.lab.guide import EXPERIMENTS, Chapter, default_settings, sweep_of, write_guide
from ssd1b.lab.results import load_results

EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.mark.parametrize("width", [1280, 400])
def test_every_claim_has_its_verdict_and_every_experiment_its_pictures(
    visit: Callable[..., Page], tmp_path: Path, width: int
) -> None:
    own = default_settings(FAKE, {})
    attempt = drawing(dict.fromkeys(("flawless", "clean"), lambda settings: 0.5))
    chapters = []
    with closing(Store(tmp_path / "cells")) as store:
        for experiment in EXPERIMENTS:
            prompts = [f"{EVIL} {number}" for number in range(8)]
            run(store, sweep_of(experiment, prompts, 16, model="fake", model_settings=own, base={}), attempt)
            chapters.append(Chapter(experiment, load_results(store)))
        html = write_guide(tmp_path, chapters, store, model=EVIL, model_settings=own)[0]
    page = visit(html, viewport={"width": width, "height": 800})
    assert page.locator("tbody tr").count() == page.locator(".word").count() == len(CLAIMS)
    assert page.locator("h1").inner_text().endswith(EVIL)
    assert page.locator("section").count() == page.locator("figure svg").count() == len(EXPERIMENTS)
    assert page.locator("figure img").evaluate_all("all => all.every(image => image.naturalWidth > 100)")
    widths = page.locator("tbody td").evaluate_all("all => all.map(cell => cell.clientWidth)")
    assert min(widths) >= 100, "each part of a claim has room, below the others in a narrow window"
    # Figures scroll within themselves where a window is narrow.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
