"""Files of adapters in the spelling of every program, by the programs' own documents."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ssd1b.adapters.names import Module, modules, shapes
from ssd1b.layouts import ModelLayout
from ssd1b.weights.keymap import to_original

Adapter = dict[Module, dict[str, Tensor]]
"""Tensors by role, of each module."""


def attention(layout: ModelLayout, part: str = "unet") -> list[Module]:
    """The modules that kohya's and diffusers' scripts train by default."""
    leaves = (
        ("to_q", "to_k", "to_v", "to_out.0") if part == "unet"
        else ("q_proj", "k_proj", "v_proj", "out_proj")
    )  # fmt: skip
    return [Module(part, name) for name in modules(part, layout) if name.endswith(leaves)]


def random_lora(
    layout: ModelLayout, chosen: Iterable[Module], rank: int = 2, alpha: float | None = 3.0, seed: int = 0
) -> Adapter:
    """A LoRA with random numbers, also for convolutions."""
    generator = torch.Generator().manual_seed(seed)
    found: Adapter = {}
    for module in chosen:
        out, channels, *kernel = shapes(module.part, layout)[f"{module.name}.weight"]
        found[module] = {
            "up": 0.3 * torch.randn(out, rank, *[1] * len(kernel), generator=generator),
            "down": torch.randn(rank, channels, *kernel, generator=generator),
        }
        if alpha is not None:
            found[module]["alpha"] = torch.tensor(alpha)
    return found


def original(module: Module, layout: ModelLayout) -> str:
    """The name in the original files, as ``tests/parity/test_weights.py`` checks."""
    return _originals(layout)[f"{module.name}.weight"][0].removesuffix(".weight")


@cache
def _originals(layout: ModelLayout) -> dict[str, tuple[str, object]]:
    return to_original("unet", [name for name in shapes("unet", layout) if name.endswith(".weight")])


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _old(module: Module) -> str:
    head, _, leaf = module.name.removesuffix(".0").rpartition(".")
    text = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    return f"{module.part}.{head}.{'processor.' if module.part == 'unet' else ''}{text.get(leaf, leaf)}_lora"


_TE = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
_CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}

KOHYA = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight", "dora": "dora_scale"}
PEFT = {"up": "lora_B.weight", "down": "lora_A.weight", "magnitude": "lora_magnitude_vector"}

NAMES: dict[str, Callable[[Module, ModelLayout], str]] = {
    "kohya": lambda module, layout: (
        f"lora_unet_{_flat(original(module, layout))}" if module.part == "unet"
        else f"{_TE[module.part]}_{_flat(module.name)}"
    ),
    "kohya with diffusers' names": lambda module, layout: (
        f"{'lora_unet' if module.part == 'unet' else _TE[module.part]}_{_flat(module.name)}"
    ),
    "diffusers": lambda module, layout: f"{module.part}.{module.name}",
    "diffusers 0.2x": lambda module, layout: f"{module.part}.{module.name}",
    "diffusers old": lambda module, layout: _old(module),
    "ComfyUI": lambda module, layout: (
        f"diffusion_model.{original(module, layout)}" if module.part == "unet"
        else f"text_encoders.{_CLIP[module.part]}.transformer.{module.name}"
    ),
    "PEFT": lambda module, layout: f"base_model.model.{module.name}",
    "SimpleTuner": lambda module, layout: f"lycoris_{_flat(module.name)}",
}  # fmt: skip

SUFFIXES: dict[str, Mapping[str, str]] = {
    **dict.fromkeys(("kohya", "kohya with diffusers' names", "ComfyUI", "SimpleTuner"), KOHYA),
    **dict.fromkeys(("diffusers", "PEFT"), PEFT),
    "diffusers 0.2x": {"up": "lora.up.weight", "down": "lora.down.weight"},
    "diffusers old": {"up": "up.weight", "down": "down.weight"},
}

UNET_ONLY = ("SimpleTuner", "PEFT")
WITH_ALPHA = ("kohya", "kohya with diffusers' names", "ComfyUI", "SimpleTuner")


def written(adapter: Adapter, layout: ModelLayout, dialect: str = "kohya") -> dict[str, Tensor]:
    """The tensors of a file."""
    return {
        f"{NAMES[dialect](module, layout)}.{SUFFIXES[dialect].get(role, role)}": tensor.contiguous()
        for module, tensors in adapter.items()
        for role, tensor in tensors.items()
    }


def write_lora(
    path: Path, adapter: Adapter, layout: ModelLayout, dialect: str = "kohya", **metadata: object
) -> Path:
    """Write a file, with texts or JSON as metadata."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    save_file(written(adapter, layout, dialect), path, metadata=texts or None)
    return path


def delta(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The change of a weight by a plain LoRA."""
    rank = len(tensors["down"])
    scale = float(tensors.get("alpha", rank)) / rank
    return scale * (tensors["up"].flatten(1) @ tensors["down"].flatten(1)).reshape(shape)
