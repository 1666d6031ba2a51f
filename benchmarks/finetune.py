"""Compare fine-tuning steps of SSD-1B and SDXL at full size, and this package with diffusers and peft.

    python benchmarks/finetune.py docs/log/finetune                           # about ten minutes on two cores
    python benchmarks/finetune.py /tmp/finetune --latent 32 --rounds 1 --cases ssd1b:ssd-1b
    python benchmarks/finetune.py docs/log/finetune --name full --latent 32 --cases ssd1b-full:ssd-1b

A step is forward, backward and update for one image with cached latents and text embeddings; the weights are
random, which changes no time. Each case runs in a process of its own, with the others in turn, and writes
seconds, processor seconds and peak memory of its steps. diffusers' loop is that of its script
``train_text_to_image_lora_sdxl.py`` with ``--mixed_precision bf16``: frozen weights in bfloat16, the adapter
in float32, autocast, AdamW, clipping. Whole UNets ("full") take Adafactor, whose state is small, in
both programs; diffusers' loop is then that of ``train_text_to_image_sdxl.py``, with weights and gradients in
float32. With "full-bf16" both are in bfloat16, as with sd-scripts' ``--full_bf16``: neither of these two
programs offers that, but SDXL fits into 15 GB so.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.bench.machine import machine
from ssd1b.finetune.int8_base import store_in_int8
from ssd1b.finetune.layers import adapt
from ssd1b.finetune.prior import loss_terms
from ssd1b.finetune.settings import make_settings
from ssd1b.layouts import model_layout
from ssd1b.models.text import Conditioning
from ssd1b.models.unet import UNet
from ssd1b.training.batches import LatentBatch
from ssd1b.training.kernels import use_fast_cpu_kernels
from ssd1b.training.objective import Objective
from ssd1b.training.precision import computing_in, convert_frozen, training_dtype
from ssd1b.training.processes import Processes
from ssd1b.training.task import Learner
from ssd1b.weights.configs import unet_config

RANK = 16
CASES = ("ssd1b:ssd-1b", "ssd1b:sdxl", "diffusers:ssd-1b", "diffusers:sdxl")
INT8_CASES = ("ssd1b-int8:ssd-1b", "ssd1b-int8:sdxl")
"""Frozen weights in int8, as ``--int8-base``; only if they are named."""
FULL_CASES = (
    "ssd1b-full:ssd-1b", "diffusers-full:ssd-1b", "ssd1b-full-bf16:ssd-1b", "diffusers-full-bf16:ssd-1b",
    "ssd1b-full-bf16:sdxl", "diffusers-full-bf16:sdxl",
)  # fmt: skip
"""Whole UNets, see above; only if they are named."""
ALL_CASES = (*CASES, *INT8_CASES, *FULL_CASES)


def batch(latent: int) -> LatentBatch:
    """Make an image's latents and a caption's embeddings."""
    side = 8.0 * latent
    return LatentBatch(
        torch.randn(1, 4, latent, latent),
        Conditioning(torch.randn(1, 77, 2048), torch.randn(1, 1280)),
        torch.tensor([[side, side, 0.0, 0.0, side, side]]),
        torch.ones(1, dtype=torch.bool),
    )


def ours(
    layout: str, latent: int, steps: int, begin: Callable[[], None], *, int8_base: bool = False,
    full: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Take the steps of ``ssd1b finetune``; ``full`` is the number format of a whole UNet's weights."""
    method = {"rank": RANK} if full is None else {"method": "full", "train.optimizer": "adafactor"}
    settings = make_settings(None, {**method, "train.steps": steps, "data.path": "x"}, size=1024)
    dtype = training_dtype("cpu")
    unet = random_network(lambda: UNet(model_layout(layout).unet), full or dtype)
    if int8_base:
        store_in_int8(unet.requires_grad_(False))
        convert_frozen(unet, dtype)
    if full is None:
        adapt(unet, settings)
    use_fast_cpu_kernels(unet, dtype)
    objective, given = Objective(text=None, device="cpu", dtype=dtype), batch(latent)

    def loss(module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        return loss_terms(objective, computing_in(dtype, module), batch, None, 1.0)

    learner = Learner(unet, loss, settings.train, Processes(torch.device("cpu"), settings.train))
    for step in range(steps):
        begin()
        learner.update(step, [given])
    begin()


def theirs(
    layout: str, latent: int, steps: int, begin: Callable[[], None], *, full: torch.dtype | None = None
) -> None:
    """Run diffusers' loop with peft's adapter on the same modules, or for a whole UNet."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    dtype = training_dtype("cpu")
    unet = random_network(
        lambda: UNet2DConditionModel.from_config(unet_config(model_layout(layout).unet, latent)),
        full or dtype,
    )
    if full is None:
        unet.requires_grad_(False)
        unet.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=MODULES)
        )
        cast_training_params(unet, dtype=torch.float32)
    trained = [each for each in unet.parameters() if each.requires_grad]
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(trained, lr=1e-4) if full is None else torch.optim.Adafactor(trained, lr=1e-6)
    )
    schedule, given = Objective(text=None, device="cpu", dtype=dtype), batch(latent)
    unet.train()
    for _ in range(steps):
        begin()
        example = schedule(given)
        latents, timesteps, embeds, pooled, time_ids = example.inputs
        with torch.autocast("cpu", dtype):
            predicted = unet(
                latents, timesteps, embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}
            ).sample
        errors = (predicted.float() - example.target).square().flatten(1).mean(1)
        (errors * example.weights).mean().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    begin()


MODULES = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
"""Those of kohya's trainer, which is this package's default."""


def random_network(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    """Make a network in a number format, without its weights in float32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(default)


def measure(case: str, latent: int, steps: int) -> dict[str, Any]:
    """Take two steps to warm up, and then measure others."""
    program, layout = case.split(":")
    torch.manual_seed(0)
    wall: list[float] = []
    processor: list[float] = []

    def begin() -> None:
        wall.append(time.perf_counter())
        processor.append(time.process_time())

    programs = {"ssd1b": ours, "ssd1b-int8": partial(ours, int8_base=True), "diffusers": theirs}
    for name, run in (("ssd1b", ours), ("diffusers", theirs)):
        programs[f"{name}-full"] = partial(run, full=torch.float32)
        programs[f"{name}-full-bf16"] = partial(run, full=torch.bfloat16)
    programs[program](layout, latent, steps + 2, begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    differences = {
        name: [after - before for before, after in itertools.pairwise(times[2:])]
        for name, times in (("seconds", wall), ("processor_seconds", processor))
    }
    return {**differences, "peak_gb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="*", choices=ALL_CASES, default=list(CASES))
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="finetune", help="of the file with the figures")
    parser.add_argument("--case", choices=ALL_CASES, help="measure one case here, and print it")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(given.case, given.latent, given.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in given.cases}
    for _ in range(given.rounds):
        for case in given.cases:
            command = [sys.executable, __file__, str(given.out), "--case", case]
            command += ["--latent", str(given.latent), "--steps", str(given.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[case].append(json.loads(done.stdout.splitlines()[-1]))
            print(case, json.dumps(found[case][-1]), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    summary = {
        case: {
            "seconds": statistics.median(second for each in rounds for second in each["seconds"]),
            "processor_seconds": statistics.median(
                second for each in rounds for second in each["processor_seconds"]
            ),
            "peak_gb": max(each["peak_gb"] for each in rounds),
        }
        for case, rounds in found.items()
    }
    result = {
        "machine": machine(torch.device("cpu")),
        "latent": given.latent,
        "rank": RANK,
        "summary": summary,
        "rounds": found,
    }
    (given.out / f"{given.name}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
