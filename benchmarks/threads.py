"""Number of threads: an image of the miniature or a step of a full-size UNet, with and without load.

    python benchmarks/threads.py                     # the miniature, from process start to file
    python benchmarks/threads.py --layout ssd-1b     # guided steps of a full-size UNet, random weights

The ways to choose threads take turns, so that all see the same machine: "before" is torch's choice, "one" is
one thread, "auto" is what ``ssd1b`` does, "auto, N spins" is the same with another ``GOMP_SPINCOUNT``. Prints
the median of the seconds with the range. Run it on an idle machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

UNSET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
TORCH_DEFAULT = {"GOMP_SPINCOUNT": "300000"}
"""GNU OpenMP's default if there are no more threads than cores."""

WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "before": ("all", TORCH_DEFAULT),
    "one": ("1", TORCH_DEFAULT),
    "auto": ("auto", {}),
    "auto, 0 spins": ("auto", {"GOMP_SPINCOUNT": "0"}),
    "auto, 1000 spins": ("auto", {"GOMP_SPINCOUNT": "1000"}),
    "all, 10000 spins": ("all", {"GOMP_SPINCOUNT": "10000"}),
}

STEP = """
import os, sys, time
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
import torch
from ssd1b.layouts import model_layout
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import example_inputs
from ssd1b.runtime import choose_dtype
from ssd1b.threads import use_threads
name, latent, threads, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
layout = model_layout(name).unet
use_threads("auto" if threads == "auto" else int(threads), layout, latent, latent)
torch.manual_seed(0)
torch.set_default_dtype(choose_dtype(None, torch.device('cpu')))
with torch.device("meta"):
    unet = UNet(layout)
unet = unet.to_empty(device="cpu").requires_grad_(False)
for parameter in unet.parameters():
    parameter.normal_(std=0.02)
inputs = example_inputs(layout, 2, latent, latent, fill=torch.randn).to("cpu", unet.dtype)
with torch.inference_mode():
    for step in range(steps + 1):
        begin = time.perf_counter()
        unet(*inputs)
        if step:
            print(time.perf_counter() - begin)
"""


def environment(extra: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in UNSET} | extra


def picture(way: str, folder: Path) -> list[float]:
    threads, extra = WAYS[way]
    count = str(os.cpu_count()) if threads == "all" else threads
    call = ["generate", "a large red metal sphere", "--seed", "1", "--offline", "--out", str(folder)]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ssd1b", *call, "--threads", count],
        env=environment(extra), check=True, capture_output=True,
    )  # fmt: skip
    return [time.perf_counter() - begin]


def steps(way: str, layout: str, latent: int, count: int) -> list[float]:
    threads, extra = WAYS[way]
    number = str(os.cpu_count()) if threads == "all" else threads
    command = [sys.executable, "-c", STEP, layout, str(latent), number, str(count)]
    done = subprocess.run(command, env=environment(extra), check=True, capture_output=True, text=True)
    return list(map(float, done.stdout.split()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layout", help="A published layout, such as ssd-1b.")
    parser.add_argument("--latent", type=int, default=64, help="Side of the latents.")
    parser.add_argument("--steps", type=int, default=2, help="Steps of the UNet in each round.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), help="Run only these.")
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1], help="Numbers of busy processes.")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        for busy in given.busy:
            spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                seconds: dict[str, list[float]] = {way: [] for way in given.ways}
                for _ in range(given.rounds):
                    for way in given.ways:
                        if given.layout:
                            found = steps(way, given.layout, given.latent, given.steps)
                        else:
                            found = picture(way, Path(folder))
                        seconds[way] += found
            finally:
                for spinner in spinners:
                    spinner.kill()
                    spinner.wait()
            what = f"{given.layout}, latent {given.latent}, guided step" if given.layout else "image"
            print(f"{what}, next to {busy} busy processes, {os.cpu_count()} cores")
            for way, values in seconds.items():
                print(f"  {way:18} {np.median(values):7.2f} s  ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
