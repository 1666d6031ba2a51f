"""What draws nothing in no time, in a model's place, and what a process does that is to be killed."""

import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import Inline, JobResult, thumbnail
from ssd1b.jobs.job import Job
from ssd1b.jobs.store import DONE, FAILED, Outcome, Store
from ssd1b.lab.axes import parse_axis
from ssd1b.lab.sweep import ModelDescription, Sweep, expand, record
from ssd1b.pipeline import Watch, ignore
from ssd1b.settings import GenerationSettings

Chance = Callable[[GenerationSettings], float]

FAKE = ModelDescription(Path(), "sdxl", {"width": 64, "height": 64, "sampler": "euler"}, "fingerprint", ())


class Fake:
    """Draws pictures of one colour, which the settings decide, and tells how many."""

    def __init__(self, log: Path | None = None, seconds: float = 0.0) -> None:
        self.drawn = 0
        self._log, self._seconds = log, seconds

    def __call__(self, batch: Sequence[GenerationSettings], watch: Watch = ignore) -> list[JobResult]:
        return [self.one(settings) for settings in batch]

    def one(self, settings: GenerationSettings) -> JobResult:
        self.drawn += 1
        if settings.prompt == "a broken one":
            return JobResult(Outcome(state=FAILED, error="the picture is no numbers"), None)
        time.sleep(self._seconds)
        color = (settings.seed % 256, settings.steps, int(settings.guidance_scale * 10) % 256)
        file = BytesIO()
        Image.new("RGB", (64, 64), color).save(file, "PNG")
        if self._log is not None:
            with self._log.open("a") as log:
                log.write(f"{settings.seed} {settings.steps} {settings.guidance_scale}\n")
        outcome = Outcome(
            state=DONE, digest=str(color), passes=4.0, metrics={"red": float(color[0])},
            thumbnail=thumbnail(Image.new("RGB", (64, 64), color)),
        )  # fmt: skip
        return JobResult(outcome, file.getvalue())


def wanted(sweep: Sweep) -> list[Job]:
    return list(expand(sweep, lambda name: FAKE, device=torch.device("cpu"), dtype=torch.float32))


def sweep(*axes: str, prompts: tuple[str, ...] = ("a cube",)) -> Sweep:
    return Sweep(prompts=prompts, axes=tuple(map(parse_axis, axes)), model="fake")


def inline(fake: Any) -> Inline[JobResult]:
    """An executor that draws with what draws nothing."""
    return Inline(lambda name: nullcontext(fake))


def run(store: Store, what: Sweep, fake: Any, *, retry: bool = False, **how: Any) -> list[Job]:
    jobs = wanted(what)
    record(what, jobs, store)
    draw_jobs(plan(jobs, store, retry=retry), store, inline(fake), **how)
    return jobs


def drawing(chances: dict[str, Chance], level: Chance = lambda settings: 0.0):
    """What draws pictures that have something right with a known chance, for all settings from one luck."""
    pixels = len(thumbnail(Image.new("RGB", (64, 64))))

    def one(settings: GenerationSettings) -> JobResult:
        luck = random.Random(f"{settings.prompt} {settings.seed}").random()
        metrics = {name: float(luck < chance(settings)) for name, chance in chances.items()}
        shade = int(level(settings)) % 156
        form = bytes([shade, shade + 100]) * (pixels // 2)
        outcome = Outcome(state=DONE, digest="", passes=1.0, metrics=metrics, thumbnail=form)
        return JobResult(outcome, None)

    return lambda batch, watch: [one(settings) for settings in batch]


FIVE_HUNDRED = ("seed=1-10", "steps=1-10", "guidance=1-5")

if __name__ == "__main__":
    folder, log = map(Path, sys.argv[1:])
    with closing(Store(folder)) as opened:
        run(opened, sweep(*FIVE_HUNDRED), Fake(log, 0.002))
