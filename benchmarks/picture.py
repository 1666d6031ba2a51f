"""Cold start of one image at full size, from process start to file, by this package and by diffusers.

    python benchmarks/picture.py --model /tmp/ssd-1b --layout ssd-1b --size 512 --steps 20
    python benchmarks/picture.py --model /tmp/ssd-1b --engines ssd1b --size 1024 --steps 1 -- --memory low
    python benchmarks/picture.py --model /tmp/ssd-1b --dtype bfloat16 --few-steps 4 --rounds 3

With ``--few-steps`` a third case is this package with so many steps without guidance, as few-step models take
them. The model is created if it does not exist: published shapes, random weights, float16. Arguments after
``--`` are passed to ``ssd1b generate``. Prints wall-clock seconds and the peak memory of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ssd1b.bench.case import make_case
from ssd1b.layouts import model_layout
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder

PROMPT = "a lighthouse on a cliff above the sea at dusk"

DIFFUSERS = """
import sys, torch
from diffusers import StableDiffusionXLPipeline
model, dtype, size, steps, guidance, out = sys.argv[1:]
kind = getattr(torch, dtype)
pipe = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=kind, local_files_only=True)
pipe.set_progress_bar_config(disable=True)
settings = dict(width=int(size), height=int(size), guidance_scale=float(guidance))
noise = torch.Generator().manual_seed(1)
pictures = pipe(sys.stdin.read(), num_inference_steps=int(steps), generator=noise, **settings)
pictures.images[0].save(out)
"""


def write_model(folder: Path, name: str) -> None:
    layout = model_layout(name)
    networks = make_case("picture", layout, latent=8, batch=1, dtype=torch.float16).network
    weights = {part: network.state_dict() for part, network in networks.named_children()}
    save_folder(folder, ModelInfo(layout=layout), weights)


def generate_command(
    model: Path, dtype: str, *, size: int, steps: int, guidance: float, out: str
) -> list[str]:
    """Make the command for this package, which reads the prompt from standard input."""
    return [
        sys.executable, "-m", "ssd1b", "generate", "--file", "-", "--model", str(model), "--dtype", dtype,
        "--size", str(size), "--steps", str(steps), "--guidance", str(guidance), "--seed", "1", "--out", out,
    ]  # fmt: skip


def run(command: list[str]) -> tuple[float, int]:
    """Run a command; return its seconds and its peak memory in bytes."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(PROMPT.encode())
    process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed with exit code {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Cold start of one image, from process start to file.")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--layout", default="ssd-1b")
    parser.add_argument("--engines", default="ssd1b,diffusers")
    parser.add_argument("--few-steps", type=int)
    parser.add_argument("--rounds", type=int, default=1, help="of all cases in turn")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=9.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("rest", nargs="*", help="options for ssd1b generate")
    given = parser.parse_args()
    if not given.model.exists():
        write_model(given.model, given.layout)
    with tempfile.TemporaryDirectory() as folder:
        theirs = map(str, (given.model, given.dtype, given.size, given.steps, given.guidance))

        def ours(steps: int, guidance: float) -> list[str]:
            command = generate_command(
                given.model, given.dtype, size=given.size, steps=steps, guidance=guidance, out=folder
            )
            return [*command, *given.rest]

        commands = {
            "ssd1b": ours(given.steps, given.guidance),
            "diffusers": [sys.executable, "-c", DIFFUSERS, *theirs, f"{folder}/theirs.png"],
        }
        steps = dict.fromkeys(given.engines.split(","), given.steps)
        if given.few_steps is not None:
            commands["ssd1b, few steps"] = [*ours(given.few_steps, 1.0), "--sampler", "lcm"]
            steps["ssd1b, few steps"] = given.few_steps
        for engine in list(steps) * given.rounds:
            seconds, memory = run(commands[engine])
            row = {"engine": engine, "layout": given.layout, "size": given.size, "steps": steps[engine]}
            row |= {"dtype": given.dtype, "options": " ".join(given.rest)}
            print(json.dumps(row | {"seconds": round(seconds, 1), "gigabytes": round(memory / 1e9, 2)}))


if __name__ == "__main__":
    main()
