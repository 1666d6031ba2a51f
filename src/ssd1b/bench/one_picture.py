"""Generation of one image by this package or by diffusers, in a separate process.

Run as ``python -m ssd1b.bench.one_picture TASK``. A separate process has its own peak memory, and can be
stopped or killed without harm. diffusers is only imported on demand.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from ssd1b.diffusion.noise import noise_source
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.runtime import choose_device, choose_dtype

PROMPT = "a large red metal sphere on a blue background"
SEED = 0
GUIDANCE = 5.0


Generate: TypeAlias = Callable[[], tuple[Image.Image, torch.Tensor]]
"""Generates once: -> (the image, the latents after the first step, [4, height / 8, width / 8])."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An image to generate.

    Attributes:
        engine: "ssd1b" or "diffusers".
        model: a folder, or for ``ssd1b`` a file.
        device: see ``runtime.choose_device``.
        dtype: see ``runtime.choose_dtype``.
        steps: denoising steps with the Euler sampler.
        size: side in pixels.
        out: the ``.npz`` file to write: ``pixels``, [size, size, 3], 0 to 255, and ``first``, the latents
            after the first step, [4, size / 8, size / 8].
    """

    engine: str
    model: str
    device: str
    dtype: str
    steps: int
    size: int
    out: str


def draw(task: Task) -> dict[str, Any]:
    """Generate and write the image; return seconds of loading and generating, and peak memory in bytes."""
    start = time.perf_counter()
    load = {"ssd1b": _load_ours, "diffusers": _load_diffusers}[task.engine]
    generate = load(task)
    loaded = time.perf_counter()
    image, first = generate()
    done = time.perf_counter()
    np.savez(task.out, pixels=np.asarray(image.convert("RGB")), first=first.float().cpu().numpy())
    return {"loading": loaded - start, "seconds": done - loaded, "memory": _peak_memory(task.device)}


def _load_ours(task: Task) -> Generate:
    pipeline = Pipeline.load(task.model, device=task.device, dtype=task.dtype, offline=True)
    settings = pipeline.settings(
        PROMPT, seed=SEED, steps=task.steps, sampler="euler", guidance_scale=GUIDANCE, width=task.size,
        height=task.size,
    )  # fmt: skip

    def generate() -> tuple[Image.Image, torch.Tensor]:
        latents = [step.latents for step in pipeline.steps([settings])]
        return pipeline.pictures(latents[-1], [settings])[0].image, latents[0][0]

    return generate


def _load_diffusers(task: Task) -> Generate:
    diffusers: Any = import_module("diffusers")
    diffusers.utils.logging.set_verbosity_error()
    device = choose_device(task.device)
    dtype = choose_dtype(task.dtype, device)
    model = Model.find(task.model, offline=True, half=dtype.itemsize == 2)
    # The same files as ours: a folder may have both variants.
    names = {tensor.file.name for tensor in model.checkpoint.part("unet").tensors.values()}
    variant = "fp16" if any(".fp16" in name for name in names) else None
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        task.model, torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True,
        add_watermarker=False,
    ).to(device)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    cells = task.size // model.layout.vae.factor

    def generate() -> tuple[Image.Image, torch.Tensor]:
        latents: list[torch.Tensor] = []

        def keep(_pipe: Any, _step: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
            latents.append(state["latents"].clone())
            return state

        noise = noise_source([SEED], cells, cells, device)()
        image = pipe(
            PROMPT, latents=noise.to(dtype), num_inference_steps=task.steps, guidance_scale=GUIDANCE,
            width=task.size, height=task.size, callback_on_step_end=keep,
        ).images[0]  # fmt: skip
        return image, latents[0][0]

    return generate


def _peak_memory(device: str) -> int | None:
    """Report peak memory of a CUDA GPU or the process, in bytes; None if the system has no figure."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    # Not resource.getrusage, whose maximum is inherited from the parent process.
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def task_text(task: Task) -> str:
    """Serialize a task for this module's command line."""
    return json.dumps(asdict(task))


if __name__ == "__main__":
    print(json.dumps(draw(Task(**json.loads(sys.argv[1])))))  # noqa: T201
