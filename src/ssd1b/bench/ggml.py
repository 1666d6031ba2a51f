"""stable-diffusion.cpp as a peer, through its Python package: whole pictures, on the CPU it was built for."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from PIL import Image
from torch import nn

from ssd1b.bench.case import Case
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_single_file

_FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def load(
    case: Case, sigmas: Sequence[float], dtype: torch.dtype, *, quantized: str | None = None
) -> Callable[[], list[Image.Image]]:
    """Give it the weights, by way of a file.

    It draws noise as torch does on a CPU and takes our noise levels, but without a negative prompt it zeroes
    the words alone and not the pooled text: its pictures are alike, not the same.

    Args:
        case: a picture; its layout has CLIP's vocabulary.
        sigmas: the noise levels that the other engines step through.
        dtype: number format of the file, and where ``quantized`` is None of the weights in memory.
        quantized: ggml's type that matrices are rounded to: ``q8_0``.

    Returns:
        What draws the case's pictures, one after the other: it has no batches.
    """
    package: Any = import_module("stable_diffusion_cpp")
    given = case.settings
    weights = {
        name: network.state_dict() for name, network in cast(nn.ModuleDict, case.network).named_children()
    }
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save_single_file(path, ModelInfo(layout=case.layout), weights, dtype=dtype)
        model = package.StableDiffusion(
            model_path=str(path), wtype=quantized or _FORMATS[dtype], n_threads=torch.get_num_threads(),
            rng_type="cpu", sampler_rng_type="cpu", vae_decode_only=True, verbose=False,
        )  # fmt: skip

    def draw() -> list[Image.Image]:
        return [
            model.generate_image(
                prompt=given["prompt"], width=given["width"], height=given["height"], seed=given["seed"],
                cfg_scale=given["guidance_scale"], sample_method=given["sampler"],
                sample_steps=given["steps"], sigmas=",".join(map(repr, sigmas)),
            )[0]
            for _ in range(case.batch)
        ]  # fmt: skip

    return draw
