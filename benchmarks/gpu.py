"""Benchmark whole images on a GPU against diffusers: SSD-1B and SDXL at 1024x1024 in 30 steps, in minutes.

    python benchmarks/gpu.py --out speed

Engines that compile do so first, in parallel processes that fill torch's cache on disk. Then ``ssd1b bench``
uses the cache and lets the engines take turns. When the time limit is reached, the rest is skipped.
"""

import argparse
import os
import subprocess
import sys
import time
from itertools import product

import torch

from ssd1b.bench.case import make_case
from ssd1b.bench.engines import ENGINES
from ssd1b.layouts import model_layout
from ssd1b.runtime import choose_device, choose_dtype

COMPILING = ("ssd1b-compiled", "ssd1b-fp8", "ssd1b-int8", "diffusers-compiled")


@torch.inference_mode()
def compile_engine(layout: str, engine: str, batch: int, latent: int) -> None:
    device = choose_device(None)
    dtype = choose_dtype(None, device)
    case = make_case(
        "picture", model_layout(layout), latent=latent, batch=batch, steps=2, dtype=dtype, device=device
    )
    begin = time.perf_counter()
    ENGINES[engine].prepare(case, dtype, device)()
    print(f"{layout}, {engine}, batch {batch}: compiled in {time.perf_counter() - begin:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layouts", default="ssd-1b,sdxl")
    parser.add_argument("--peers", default="diffusers,diffusers-compiled,ssd1b-compiled,ssd1b-fp8")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--latent", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="time limit, after which nothing more is started"
    )
    parser.add_argument("--out", default="speed")
    parser.add_argument("--warm", nargs=3, metavar=("LAYOUT", "ENGINE", "BATCH"), help="only compile")
    given = parser.parse_args()
    if given.warm:
        layout, engine, batch = given.warm
        return compile_engine(layout, engine, int(batch), given.latent)

    begin = time.perf_counter()
    layouts, peers, batches = (each.split(",") for each in (given.layouts, given.peers, given.batches))
    wanted = list(product(layouts, [peer for peer in peers if peer in COMPILING], batches))
    threads = str(max(1, (os.cpu_count() or 1) // max(1, len(wanted))))
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": threads}
    latent = ["--latent", str(given.latent)]
    processes = [
        subprocess.Popen([sys.executable, __file__, *latent, "--warm", *each], env=environment)
        for each in wanted
    ]
    failed = [each for each, process in zip(wanted, processes, strict=True) if process.wait()]
    for layout, batch in product(layouts, batches):
        if time.perf_counter() - begin > given.seconds:
            print(f"{layout}, batch {batch}: skipped, the time limit is reached")
            continue
        working = [peer for peer in peers if (layout, peer, batch) not in failed]
        done = subprocess.run([
            sys.executable, "-m", "ssd1b", "bench", "--part", "picture", "--layout", layout, *latent,
            "--batch", batch, "--steps", str(given.steps), "--rounds", str(given.rounds),
            "--peers", ",".join(working), "--out", f"{given.out}/{layout}-{batch}",
        ], check=False)  # fmt: skip
        print(f"{layout}, batch {batch}: {time.perf_counter() - begin:.0f} s since the start", flush=True)
        if done.returncode:
            failed.append((layout, "bench", batch))
    if failed:
        sys.exit(f"failed: {failed}")
    return None


if __name__ == "__main__":
    main()
