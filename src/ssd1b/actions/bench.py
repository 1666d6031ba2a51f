"""Benchmark networks at full size with random weights, in turn with other engines; nothing is downloaded."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from ssd1b.bench.case import make_case, parameters
from ssd1b.bench.engines import EngineChoice, check_engine, needed_bytes, read_choice
from ssd1b.bench.machine import machine
from ssd1b.bench.plot import plot
from ssd1b.bench.rounds import Row, compare
from ssd1b.errors import InputError
from ssd1b.layouts import model_layout
from ssd1b.numerals import byte_size
from ssd1b.runtime import choose_device
from ssd1b.saving import renewing

FILES = ("bench.jsonl", "bench.svg")


class _Task(NamedTuple):
    layout: str
    part: str
    latent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTable:
    """Timings of all engines on one network.

    Attributes:
        layout: name of a layout.
        part: one of ``bench.PARTS``.
        latent: side of the latents.
        batch: number of images.
        steps: denoising steps; None except for the part "picture".
        reference: engine and number format whose output the others are compared with.
        machine: device, threads and versions.
        rows: one for each engine.
    """

    layout: str
    part: str
    latent: int
    batch: int
    steps: int | None
    reference: str
    machine: dict[str, Any]
    rows: list[Row]

    def facts(self) -> dict[str, Any]:
        """Return the table for JSON, with the machine's facts at the top level."""
        facts = asdict(self)
        rows, about = facts.pop("rows"), facts.pop("machine")
        return {**facts, **about, "rows": rows}


def benchmark(
    layouts: Sequence[str] = ("ssd-1b",),
    parts: Sequence[str] = ("unet",),
    latents: Sequence[int] = (64,),
    *,
    peers: Sequence[str] = (),
    batch: int = 1,
    steps: int = 20,
    rounds: int = 5,
    device: str | None = None,
    dtype: str | None = None,
    advance: Callable[[str, int], None] = lambda call, total: None,
) -> Iterator[BenchTable]:
    """Time every part of every layout at every size, with each engine in turn.

    Args:
        layouts: names in ``layouts.NAMED``.
        parts: of ``bench.PARTS``.
        latents: sides of the latents, an eighth of the image's.
        peers: names in ``bench.engines.ENGINES``, with a number format as "diffusers:bf16".
        batch: images at a time.
        steps: denoising steps of an image, with guidance.
        rounds: calls of each engine that are timed.
        device: None for the fastest one.
        dtype: number format of engines that name none; None for what the device is fast at.
        advance: called before each call of an engine with its description and the total number of calls.

    Raises:
        InputError: an engine is unknown, not installed or cannot do a part, or memory does not suffice.
    """
    where = choose_device(device)
    engines = list(dict.fromkeys(read_choice(name, dtype, where) for name in ("ssd1b", *peers)))
    oracle = "diffusers" if find_spec("diffusers") else "ssd1b-plain"
    reference = read_choice(f"{oracle}:fp32", None, where)
    tasks = [
        _Task(layout, part, latent)
        for layout, part in product(layouts, parts)
        for latent in (latents if part != "text" else latents[:1])  # a text has no size
    ]
    for task, engine in product(tasks, engines):  # all of them, before anything is timed
        check_engine(engine.name, task.part, model_layout(task.layout), where)
    total = len(tasks) * ((rounds + 1) * len(engines) + 1)
    for task in tasks:
        layout = model_layout(task.layout)
        _check_memory(task, [reference, *engines], where)
        case = make_case(task.part, layout, latent=task.latent, batch=batch, steps=steps, device=where)
        rows = compare(
            case, engines, reference=reference, rounds=rounds, device=where,
            advance=lambda call: advance(call, total),
        )  # fmt: skip
        image_steps = case.settings.get("steps")
        del case  # before the next one is allocated
        yield BenchTable(
            **task._asdict(), batch=batch, steps=image_steps, reference=str(reference),
            machine=machine(where), rows=rows,
        )  # fmt: skip


def _check_memory(task: _Task, engines: Sequence[EngineChoice], device: torch.device) -> None:
    """Refuse a network that cannot fit before anything is allocated."""
    needed = needed_bytes(parameters(task.part, model_layout(task.layout)), engines)
    free = psutil.virtual_memory().available
    if device.type == "cpu" and needed > free:
        raise InputError(
            f"the {task.part} of {task.layout} takes {byte_size(needed)} for weights alone in these "
            f"engines, and {byte_size(free)} are free: name fewer --peers"
        )


def write_tables(folder: Path, tables: Sequence[BenchTable], *, overwrite: bool = False) -> list[Path]:
    """Write ``bench.jsonl`` with one table per line, and the plot ``bench.svg``.

    Raises:
        InputError: a file cannot be written, or is not ours and ``overwrite`` is False.
    """
    facts = [table.facts() for table in tables]
    lines = "".join(json.dumps(each) + "\n" for each in facts)
    for name, text in zip(FILES, (lines, plot(facts)), strict=True):
        with renewing(folder / name, overwrite=overwrite) as aside:
            aside.write_text(text, encoding="utf-8")
    return [folder / name for name in FILES]
