"""Golden run: digests of images, a sweep's results and trainings, to compare two commits on one machine.

    python benchmarks/golden.py before.json                      # with the package that this Python imports
    python benchmarks/golden.py after.json --against before.json
    python benchmarks/golden.py after.json --against before.json --only generate

Only the command line is used, so internal changes do not affect this file. Every command runs on one thread.
With ``--against``, the names of entries that differ are printed and the exit code is 1.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

LONG = ", ".join(f"a {size} red metal sphere left of a {size} blue cube" for size in ("large", "small") * 6)

PICTURES: dict[str, list[str]] = {
    "default": [],
    "mini-sdxl": ["--model", "mini-sdxl"],
    "count": ["--count", "3", "--seed", "7"],
    "negative": ["--negative", "blurry", "--guidance", "9"],
    "negative-empty": ["--negative", ""],
    "negative-preset": ["--negative-preset", "realistic-people"],
    "no-guidance": ["--guidance", "1"],
    "rescale": ["--guidance", "12", "--guidance-rescale", "0.7"],
    "interval": ["--guidance-interval", "0.2", "0.8"],
    "feature-reuse": ["--feature-reuse", "0.5"],
    "preset": ["--preset", "mini-ssd-1b-tuned"],
    "article-detail": ["--preset", "article-detail", "--steps", "12"],
    "wide": ["--size", "192x128"],
    "bf16": ["--dtype", "bf16", "--steps", "6"],
    "int8": ["--quantize", "int8", "--steps", "6"],
    "int8-weights": ["--quantize", "int8-weights", "--steps", "6"],
    "low-memory": ["--memory", "low", "--steps", "6"],
    "fast": ["--speed", "fast"],
    "webp": ["--format", "webp", "--steps", "4"],
    **{f"sampler-{name}": ["--sampler", name, "--steps", "8"] for name in (
        "euler_ancestral", "heun", "ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc", "lcm")},
    **{f"schedule-{name}": ["--schedule", name, "--steps", "8"] for name in (
        "trailing", "linspace", "normal", "simple", "sgm_uniform", "karras", "exponential", "beta")},
}  # fmt: skip

PROMPT = "a large red metal sphere on a blue background"
DISTILLATION = ("--teacher", "mini-sdxl", "--student", "mini-ssd-1b", "--data", "tabletop", "--steps", "4",
                "--batch-size", "4", "--seed", "3")  # fmt: skip


class Refused(Exception):
    """The command line rejected its arguments; the message is its last line."""


def ssd1b(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ssd1b", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode == 2:
        raise Refused(done.stderr.splitlines()[-1])
    if done.returncode:
        raise SystemExit(f"ssd1b {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def pixels(path: Path) -> str:
    with Image.open(path) as image:
        return hashlib.sha256(image.convert("RGB").tobytes() + repr(image.size).encode()).hexdigest()[:16]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def generate(folder: Path) -> Iterator[tuple[str, Any]]:
    for name, options in PICTURES.items():
        seed = [] if "--seed" in options else ["--seed", "1"]
        try:
            ssd1b("generate", PROMPT, *seed, *options, "--out", name, folder=folder)
        except Refused as error:  # a processor without VNNI refuses int8, for example
            yield name, str(error)
        else:
            yield name, [pixels(path) for path in sorted((folder / name).iterdir())]
    weighted = "(a cube:1.3) [on] a table BREAK red"
    ssd1b("generate", LONG, weighted, "--seed", "2", "--out", "long", folder=folder)
    for path in sorted((folder / "long").iterdir()):
        yield path.name, pixels(path)
        recipe = ssd1b("inspect", str(path), folder=folder)
        yield f"recipe of {path.name}", recipe.replace(str(path), "PICTURE")


def sweep(folder: Path) -> Iterator[tuple[str, Any]]:
    ssd1b(
        "sweep", PROMPT, LONG, "--axis", "guidance=3,9", "--axis", "sampler=euler,unipc", "--steps", "6",
        "--seeds", "2", "--out", "cells", folder=folder,
    )  # fmt: skip
    found = sorted(path for path in (folder / "cells").rglob("*.png"))
    yield "cells", {path.name: pixels(path) for path in found}


def evaluate(folder: Path) -> Iterator[tuple[str, Any]]:
    report = ssd1b("evaluate", "--captions", "12", "--steps", "6", folder=folder)
    yield "mini-ssd-1b", [row for row in report.splitlines() if not row.startswith("a picture: ")]  # seconds


def losses(path: Path) -> list[Any]:
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    timed = ("seconds", "time", "rate", "date", "memory", "host")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in timed)} for row in rows
    ]


def distill(folder: Path) -> Iterator[tuple[str, Any]]:
    ssd1b("distill", *DISTILLATION, "--out", "student", folder=folder)
    for path in sorted((folder / "student").rglob("*.jsonl")):
        yield str(path.relative_to(folder)), losses(path)
    for path in sorted((folder / "student").rglob("*.safetensors")):
        if "model" in path.parts:
            yield str(path.relative_to(folder)), digest(path)


GROUPS = {group.__name__: group for group in (generate, sweep, evaluate, distill)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="The JSON file to write.")
    parser.add_argument("--against", type=Path, help="A file from another commit.")
    parser.add_argument("--only", action="append", choices=GROUPS, help="Run only this group.")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name in given.only or GROUPS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found |= {f"{name}: {what}": value for what, value in GROUPS[name](Path(folder))}
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        given.out.write_text(json.dumps(found, indent=1))
    if given.against:
        before = json.loads(given.against.read_text())
        compared = [key for key in before if key.partition(":")[0] in (given.only or GROUPS)]
        differ = [key for key in compared if before[key] != found.get(key)]
        new = [key for key in found if key not in before]
        print("\n".join([*differ, *(f"new: {key}" for key in new)]) or f"{len(compared)} entries are equal")
        sys.exit(bool(differ or new))


if __name__ == "__main__":
    main()
