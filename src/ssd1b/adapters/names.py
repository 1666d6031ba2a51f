"""Names of a model's modules in files of adapters, in the spelling of every program.

The dictionary is made from the modules of a network, not by parsing names: flattened names such as
``to_out_0`` and ``ff_net_0_proj`` cannot be split again without a doubt.

Sources: sd-scripts ``networks/lora.py``; diffusers ``loaders/lora_conversion_utils.py`` and PEFT's
``get_peft_model_state_dict``; ComfyUI ``comfy/lora.py``; OneTrainer ``modules/util/convert/lora``;
SimpleTuner's LyCORIS wrapper.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from ssd1b.layouts import ModelLayout, TextLayout, UNetLayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.weights.files import Shape
from ssd1b.weights.keymap import to_original


class Module(NamedTuple):
    """A module of a network that has a weight.

    Attributes:
        part: the network, one of ``PARTS``.
        name: its name there, such as ``down_blocks.1.attentions.0.proj_in``.
    """

    part: str
    name: str


PARTS = ("unet", "text_encoder", "text_encoder_2")
"""The networks that adapters change."""

_CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_KOHYA = {"text_encoder": ("lora_te1", "lora_te"), "text_encoder_2": ("lora_te2",)}
_DOTTED = {
    "text_encoder": (
        "text_encoder.", "te1.", "clip_l.", "text_encoders.clip_l.transformer.", "base_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": (
        "text_encoder_2.", "te2.", "clip_g.", "text_encoders.clip_g.transformer.", "base_model.model.",
        "conditioner.embedders.1.model.transformer.",
    ),
}  # fmt: skip
_OLD_TEXT = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
_OLD_UNET = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}


def shapes(part: str, layout: ModelLayout) -> dict[str, Shape]:
    """Return the shape of each tensor of a network."""
    return _shapes(getattr(layout, part))


@lru_cache(maxsize=32)
def _shapes(layout: UNetLayout | TextLayout) -> dict[str, Shape]:
    with torch.device("meta"):
        network: nn.Module = UNet(layout) if isinstance(layout, UNetLayout) else TextEncoder(layout)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@lru_cache(maxsize=32)
def dictionary(layout: ModelLayout) -> dict[str, list[Module]]:
    """Return the modules by every name that they have in files.

    A name has two modules if it does not tell one text encoder from the other; their shapes do.
    """
    found: dict[str, list[Module]] = {}
    for part in PARTS:
        for module in modules(part, layout):
            spelled = _unet_names(module, layout) if part == "unet" else _text_names(part, module)
            for name in dict.fromkeys(spelled):
                found.setdefault(name, []).append(Module(part, module))
    return found


def modules(part: str, layout: ModelLayout) -> list[str]:
    """List the names of a network's modules that have a weight."""
    return [name.removesuffix(".weight") for name in shapes(part, layout) if name.endswith(".weight")]


@lru_cache(maxsize=32)
def _original_names(layout: UNetLayout) -> dict[str, str]:
    weights = [name for name in _shapes(layout) if name.endswith(".weight")]
    return {
        ours.removesuffix(".weight"): original.removesuffix(".weight")
        for ours, (original, _) in to_original("unet", weights).items()
    }


def _unet_names(module: str, layout: ModelLayout) -> Iterator[str]:
    original = _original_names(layout.unet)[module]
    for name in (original, module):
        flat = name.replace(".", "_")
        yield from (f"lora_unet_{flat}", f"lycoris_{flat}", f"lycoris_unet_{flat}")
        yield from (f"unet.{name}", f"diffusion_model.{name}", f"model.diffusion_model.{name}")
    yield from (module, f"base_model.model.{module}", f"base_model.model.unet.{module}")
    yield from (f"unet.{old}" for old in _processors(module))
    yield from _processors(module)


def _processors(module: str) -> Iterator[str]:
    for leaf, old in _OLD_UNET.items():
        if module.endswith(f".{leaf}"):
            yield f"{module.removesuffix(leaf)}processor.{old}"


def _text_names(part: str, module: str) -> Iterator[str]:
    short = module.removeprefix("text_model.")  # transformers from version 5.6 has no such prefix
    for name in (module, short):
        flat = name.replace(".", "_")
        yield from (f"{prefix}_{flat}" for prefix in _KOHYA[part])
        yield f"lycoris_{part}_{flat}"
        for prefix in _DOTTED[part]:
            yield f"{prefix}{name}"
            head, _, leaf = name.rpartition(".")
            if leaf in _OLD_TEXT:
                yield f"{prefix}{head}.{_OLD_TEXT[leaf]}"


def kohya_name(module: Module, layout: ModelLayout) -> str:
    """Return a module's name in kohya's files, which ComfyUI, AUTOMATIC1111 and others read."""
    if module.part == "unet":
        return f"lora_unet_{_original_names(layout.unet)[module.name].replace('.', '_')}"
    return f"{_KOHYA[module.part][0]}_{module.name.replace('.', '_')}"


def comfyui_name(module: Module, layout: ModelLayout) -> str:
    """Return a module's name in files for ComfyUI with dots, as OneTrainer writes them."""
    if module.part == "unet":
        return f"diffusion_model.{_original_names(layout.unet)[module.name]}"
    return f"text_encoders.{_CLIP[module.part]}.transformer.{module.name}"


def diffusers_name(module: Module) -> str:
    """Return a module's name in diffusers' files."""
    return f"{module.part}.{module.name}"
