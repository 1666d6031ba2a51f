"""stable-diffusion.cpp as a peer, through its Python package: whole images, on the CPU it was built for."""

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
    """Load the weights of a case, through a file.

    The engine draws noise as torch does on a CPU and uses our noise levels, but without a negative prompt it
    zeroes only the embeddings and not the pooled text, so its images are similar, not equal.

    Args:
        case: a case of part ``picture`` whose layout has CLIP's vocabulary.
        sigmas: noise levels, the same as for the other engines.
        dtype: number format of the file, and of the weights in memory unless ``quantized``.
        quantized: ggml's type to quantize matrices to: ``q8_0``.

    Returns:
        A function that generates the case's images, one after the other, since the engine has no batches.
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
