"""Time and memory against image size, steps and batch size: SSD-1B with random weights.

    python benchmarks/scaling.py --model /tmp/ssd-1b --out docs/log/speed

Steps of the UNet are timed in this process, one network after the other, as the shorter of two. Whole images
are generated in separate processes, for their wall-clock time and peak memory. The model is created if it
does not exist.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from picture import generate_command, run, write_model

from ssd1b.bench.case import make_case
from ssd1b.bench.engines import ENGINES
from ssd1b.bench.machine import machine
from ssd1b.errors import InputError
from ssd1b.evaluate.plots import svg
from ssd1b.layouts import model_layout
from ssd1b.runtime import choose_dtype, dtype_name
from ssd1b.speed.torchao_quant import check_quantization

CPU = torch.device("cpu")
SHAPES = ((32, 1), (64, 1), (96, 1), (128, 1), (64, 2), (64, 4))
"""Side of the latents, and batch size."""

SIZES = (256, 512, 768, 1024)
MORE_STEPS = (5, 10)
ROUNDS = 2


def steps(dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    engines = ["ssd1b"]
    try:
        check_quantization("int8", CPU, dtype)
        engines.append("ssd1b-int8")
    except InputError as error:
        print(error, file=sys.stderr)
    layout = model_layout("ssd-1b")
    for engine in engines:
        for latent, batch in SHAPES:
            case = make_case("unet", layout, latent=latent, batch=batch)
            work = ENGINES[engine].prepare(case, dtype, CPU)
            with torch.inference_mode():
                work()
                seconds = min(_timed(work) for _ in range(ROUNDS))
            del case, work
            yield {"what": "step", "engine": engine, "latent": latent, "batch": batch, "seconds": seconds}


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pictures(model: Path, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    for memory in ("normal", "low"):
        for size, count in [(size, 1) for size in SIZES] + [(512, count) for count in MORE_STEPS]:
            with tempfile.TemporaryDirectory() as folder:
                command = generate_command(
                    model, dtype_name(dtype), size=size, steps=count, guidance=9, out=folder
                )
                seconds, most = run([*command, "--memory", memory])
            row = {"what": "picture", "memory": memory, "size": size, "steps": count}
            yield row | {"seconds": seconds, "bytes": most}


def plot(rows: list[dict[str, Any]]) -> str:
    figure = Figure(figsize=(11, 7), layout="constrained")
    by_size, by_batch, by_steps, by_memory = figure.subplots(2, 2).flat
    timed = [row for row in rows if row["what"] == "step"]
    drawn = [row for row in rows if row["what"] == "picture"]
    for engine in dict.fromkeys(row["engine"] for row in timed):
        alone = [row for row in timed if row["engine"] == engine and row["batch"] == 1]
        _line(by_size, [(8 * row["latent"], row["seconds"]) for row in alone], engine)
        several = [row for row in timed if row["engine"] == engine and row["latent"] == 64]
        _line(by_batch, [(row["batch"], row["seconds"] / row["batch"]) for row in several], engine)
    for memory in dict.fromkeys(row["memory"] for row in drawn):
        name = f"--memory {memory}"
        middle = [row for row in drawn if row["memory"] == memory and row["size"] == 512]
        _line(by_steps, [(row["steps"], row["seconds"]) for row in middle], name)
        single = [row for row in drawn if row["memory"] == memory and row["steps"] == 1]
        _line(by_memory, [(row["size"], row["bytes"] / 1e9) for row in single], name)
    for panel, across, up in (
        (by_size, "side of the image, pixels", "seconds of a step"),
        (by_batch, "batch size, 512x512", "seconds of a step, per image"),
        (by_steps, "steps, 512x512", "seconds from process start to file"),
        (by_memory, "side of the image, pixels", "peak memory of the process, GB"),
    ):
        panel.set_xlabel(across)
        panel.set_ylabel(up)
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=8)
    by_batch.set_xticks(sorted({row["batch"] for row in timed if row["latent"] == 64}))
    return svg(figure)


def _line(panel: Any, points: list[tuple[float, float]], name: str) -> None:
    panel.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory against size, steps and batch.")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    dtype = choose_dtype(given.dtype, CPU)
    if not given.model.exists():
        write_model(given.model, "ssd-1b")
    common = {**machine(CPU), "dtype": dtype_name(dtype)}
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with (given.out / "scaling.jsonl").open("w") as lines:
        for row in chain(pictures(given.model, dtype), steps(dtype)):
            rows.append(row)
            print(json.dumps({**row, **common}), file=lines, flush=True)
            print(json.dumps(row), flush=True)
    (given.out / "scaling.svg").write_text(plot(rows))


if __name__ == "__main__":
    main()
