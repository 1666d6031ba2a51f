"""Measure a sweep's overhead beyond generation, and how long a large sweep takes to list and report.

    python benchmarks/lab.py --cells 200 --recorded 100000 --out docs/log/lab.json

The miniature generates ``--cells`` images in few steps, the worst case for overhead. The remaining time is
metrics (judge, CLIP score, image statistics) or the sweep's own (hashes, files, SQLite). Then a store with
``--recorded`` cells without images is listed, loaded and reported.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ssd1b import Pipeline
from ssd1b.actions.worlds import WORLDS
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import THUMBNAIL, Inline, renderer
from ssd1b.jobs.store import DONE, Outcome, Store
from ssd1b.lab.axes import parse_axis
from ssd1b.lab.export import write_csv
from ssd1b.lab.metrics import make_measure
from ssd1b.lab.report import write_page
from ssd1b.lab.results import load_results
from ssd1b.lab.sweep import Sweep, describe, expand, record
from ssd1b.saving import replacing
from ssd1b.weights import hub
from ssd1b.weights.files import write_json

MODEL = "mini-sdxl"


def measure_sweep(folder: Path, count: int, steps: int) -> dict[str, float]:
    """Measure the seconds per image in a sweep of the miniature, by kind of work."""
    pipeline = Pipeline.load(MODEL, device="cpu", dtype="fp32")
    spent = {"drawing": 0.0, "measuring": 0.0}
    truth = WORLDS["tabletop"]
    measure = make_measure(pipeline, hub.resolve(MODEL, offline=True).path, truth)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            start = time.perf_counter()
            found = call(*given)
            spent[name] += time.perf_counter() - start
            return found

        return run

    # No two cells share any work that memoization would save.
    prompts = tuple(dict.fromkeys(truth.captions(count, 0)))
    what = Sweep(prompts=prompts, model=MODEL, settings={"steps": steps})
    with closing(Store(folder)) as store, renderer(pipeline, timed("measuring", measure)) as render:
        start = time.perf_counter()
        known = cache(partial(describe, file_digest=store.file_digest, offline=True))
        wanted = list(expand(what, known, device=pipeline.device, dtype=pipeline.dtype))
        record(what, wanted, store)
        draw_jobs(plan(wanted, store), store, Inline(lambda name: nullcontext(timed("drawing", render))))
        total = time.perf_counter() - start
    overhead, count = total - spent["drawing"], len(wanted)
    drawing = spent["drawing"] - spent["measuring"]
    return {
        "cells": count, "steps": steps, "drawing": drawing / count, "measuring": spent["measuring"] / count,
        "sweep": overhead / count, "sweep_share": overhead / drawing,
    }  # fmt: skip


def measure_report(folder: Path, count: int) -> dict[str, float]:
    """Measure the seconds to open, list, load and report a store with many cells."""
    prompts = tuple(f"a cube {number}" for number in range(count // 1000))
    axes = (parse_axis("guidance=1-10"), parse_axis("steps=1-10"), parse_axis("seed=1-10"))
    what = Sweep(prompts=prompts, axes=axes, model=MODEL, settings={})
    with closing(Store(folder)) as store:
        known = cache(partial(describe, file_digest=store.file_digest, offline=True))
        wanted = expand(what, known, device=torch.device("cpu"), dtype=torch.float32)
        wanted = list(tqdm(wanted, total=what.count, desc="cells", disable=None))
        outcome = Outcome(
            state=DONE, digest="", passes=1.0, thumbnail=bytes(THUMBNAIL * THUMBNAIL * 3),
            metrics=dict.fromkeys(("right", "clip", "sharpness", "contrast", "saturation"), 0.5),
        )  # fmt: skip
        record(what, wanted, store)
        for cell in tqdm(wanted, desc="record", disable=None):
            store.finish([(cell.key, outcome, None)])
    seconds: dict[str, float] = {"recorded": len(wanted)}

    @contextmanager
    def clock(name: str) -> Any:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with clock("open"):
        store = Store(folder)
    with closing(store):
        with clock("known"):
            store.outcomes(cell.key for cell in wanted)
        with clock("load"):
            results = load_results(store)
        with clock("page"):
            write_page(results, store, folder / "report.html")
        with clock("csv"):
            write_csv(results, store, folder / "cells.csv")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--recorded", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "sweep": measure_sweep(Path(folder) / "swept", options.cells, options.steps),
            "report": measure_report(Path(folder) / "reported", options.recorded),
        }
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        with replacing(options.out) as aside:
            write_json(aside, figures)


if __name__ == "__main__":
    main()
