"""Measure what a LoRA costs on SSD-1B at full size: merging, exchanging and removing it.

    python benchmarks/adapters.py docs/log/adapters            # 9 GB of memory in bfloat16

The weights are random, which changes no time. The LoRA has kohya's modules and rank 64 in 16 bits. A merged
adapter costs nothing in a step, in eight bits neither: the merged weights are quantized.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from loading import make_folder

from ssd1b.adapters.names import Module, kohya_name
from ssd1b.bench.machine import machine
from ssd1b.execution import DEFAULT, Execution
from ssd1b.finetune.layers import adapted_modules
from ssd1b.finetune.settings import make_settings
from ssd1b.layouts import model_layout
from ssd1b.loras import Lora, lora_of
from ssd1b.models.unet import UNet
from ssd1b.pipeline import Pipeline
from ssd1b.weights.files import write_tensors

LAYOUT = "ssd-1b"
RANK = 64


def main() -> None:
    """Make the files, and measure each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(CASES[given.case](given.out, given.rounds)))
        return
    found: dict[str, Any] = {"machine": machine(torch.device("cpu"))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder / "model", LAYOUT, "float16")
        for seed, file in enumerate(("large", "other")):
            write_lora(folder / f"{file}.safetensors", seed)
        found["megabytes"] = {each.stem: each.stat().st_size / 1e6 for each in folder.glob("*.safetensors")}
        for case in CASES:
            command = [sys.executable, __file__, str(folder), "--case", case, "--rounds", str(given.rounds)]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[case] = json.loads(ran.stdout.splitlines()[-1])
            print(case, found[case], flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "adapters.json").write_text(json.dumps(found, indent=1) + "\n")


def write_lora(path: Path, seed: int) -> None:
    """Write a LoRA of random numbers for kohya's modules of the UNet, in kohya's names and 16 bits."""
    layout = model_layout(LAYOUT)
    with torch.device("meta"):
        unet = UNet(layout.unet)
    modules = adapted_modules(unet, make_settings(None, {"data.path": "unused"}, size=1024))
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        key = kohya_name(Module("unet", name), layout)
        outputs, inputs = module.weight.shape[:2]
        for role, shape in {"lora_down": (RANK, inputs), "lora_up": (outputs, RANK)}.items():
            noise = 1e-3 * torch.randn(shape, generator=generator)
            tensors[f"{key}.{role}.weight"] = noise.to(torch.float16)
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    write_tensors(path, tensors, {})


def merge(folder: Path, rounds: int, execution: Execution = DEFAULT) -> dict[str, Any]:
    """Seconds to merge, exchange and take off, those of the processor, and the largest memory."""
    pipeline = load(folder, execution)
    assert pipeline.adapting is not None
    large, other = (lora_of(folder / f"{name}.safetensors") for name in ("large", "other"))
    turns: dict[str, tuple[Lora, ...]] = {"merge": (large,), "exchange": (other,), "take off": ()}
    seconds, cpu_seconds = ({name: list[float]() for name in turns} for _ in range(2))
    before = peak()
    for _ in range(rounds):
        for name, loras in turns.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            pipeline.adapting.use(loras)
            seconds[name].append(time.perf_counter() - begin)
            cpu_seconds[name].append(time.process_time() - begin_cpu)
    return {
        "seconds": seconds, "cpu_seconds": cpu_seconds, "threads": torch.get_num_threads(),
        "peak_gb_loaded": before, "peak_gb": peak(),
    }  # fmt: skip


def merge_int8(folder: Path, rounds: int) -> dict[str, Any]:
    """As ``merge``, in eight bits, whose scales are computed anew."""
    return merge(folder, rounds, Execution(quantized="int8"))


def load(folder: Path, execution: Execution) -> Pipeline:
    """Load the model in bfloat16."""
    return Pipeline.load(
        str(folder / "model"), device="cpu", dtype="bf16", offline=True, execution=execution, threads="auto"
    )


def peak() -> float:
    """Largest memory of this process so far in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


CASES = {"bf16": merge, "int8": merge_int8}


if __name__ == "__main__":
    main()
