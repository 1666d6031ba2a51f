"""Writing models as diffusers folders, and as single files with the original names."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd1b.errors import ConflictError, InputError, unknown
from ssd1b.files import METADATA, named
from ssd1b.layouts import STEMS, ControlNetLayout, ModelLayout
from ssd1b.numerals import counted
from ssd1b.saving import check_free, writing
from ssd1b.weights import configs
from ssd1b.weights.checkpoint import SDXL_SCHEDULER, SETTINGS_FILE, ModelInfo
from ssd1b.weights.detect import layout_of
from ssd1b.weights.files import first_few, is_finite, write_json, write_tensors
from ssd1b.weights.keymap import ORIGINAL_PREFIXES, PARTS, to_original
from ssd1b.weights.prediction import VELOCITY, VELOCITY_KEY, ZERO_SNR_KEY
from ssd1b.weights.vocabulary import (
    PADDING,
    VOCABULARY_SIZE,
    clip_vocabulary,
    tokenizer_folder,
    write_tokenizer,
)

CONTROLNET_FILE = f"{STEMS['unet']}.safetensors"
"""File with the weights in a ControlNet's folder."""

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def save_folder(
    path: Path,
    info: ModelInfo,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model as a folder that diffusers opens with ``StableDiffusionXLPipeline.from_pretrained``.

    The folder is written atomically.

    Args:
        path: the folder; must not exist. To replace an older one, write inside ``saving.renewing``.
        info: everything except the weights.
        weights: state dicts by ``keymap.PARTS``.
        dtype: number format to write; None keeps each tensor's.

    Raises:
        InputError: the weights are not finite or not of this layout, the folder exists, or the disk is full.
    """
    if os.path.lexists(path):
        raise ConflictError(f"{named(path)} already exists: choose another name")
    part_configs = _part_configs(info)
    with writing(path) as temporary:
        for part in PARTS:
            tensors = _prepared(part, weights[part], part_configs[part], dtype)
            (temporary / part).mkdir(parents=True)
            write_tensors(temporary / part / f"{STEMS[part]}.safetensors", tensors, {})
            write_json(temporary / part / "config.json", part_configs[part])
        for part, padding in PADDING.items():
            _write_tokenizer(temporary / tokenizer_folder(part), info.tokenizers.get(part), padding)
        (temporary / "scheduler").mkdir()
        write_json(temporary / "scheduler" / "scheduler_config.json", info.scheduler)
        if settings := _own_settings(info):
            write_json(temporary / SETTINGS_FILE, settings)
        write_json(temporary / "model_index.json", _model_index(info, part_configs))


def _write_tokenizer(folder: Path, source: Path | None, padding: str) -> None:
    if source is None:
        write_tokenizer(folder, *clip_vocabulary(), padding)
        return
    folder.mkdir()
    for name in _TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def _model_index(info: ModelInfo, part_configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    encoders = {part: ["transformers", *part_configs[part]["architectures"]] for part in PADDING}
    tokenizers = {tokenizer_folder(part): ["transformers", "CLIPTokenizer"] for part in PADDING}
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": info.force_zeros_for_empty_prompt,
        "scheduler": ["diffusers", info.scheduler.get("_class_name", SDXL_SCHEDULER["_class_name"])],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **encoders,
        **tokenizers,
    }


def check_single_file(path: Path, layout: ModelLayout) -> None:
    """Check that a single file can hold a model of a layout.

    Raises:
        InputError: the vocabulary is not CLIP's, as that of the miniatures; the format holds no tokenizer.
    """
    if {layout.text_encoder.vocab_size, layout.text_encoder_2.vocab_size} != {VOCABULARY_SIZE}:
        raise InputError(
            f"{named(path)}: a single file cannot hold a tokenizer other than CLIP's; write a folder"
        )


def save_single_file(
    path: Path,
    info: ModelInfo,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    spelling: str = "sdxl",
) -> None:
    """Write a model as one file with the original names, for ComfyUI, AUTOMATIC1111 and stable-diffusion.cpp.

    Args:
        path: the file; must not exist unless ``overwrite``.
        info: everything except the weights.
        weights: state dicts by ``keymap.PARTS``.
        dtype: number format to write; None keeps each tensor's.
        overwrite: replace an older file.
        spelling: the published file whose names to use, one of ``PUBLISHED``, which differ in few names.

    Raises:
        InputError: the weights are not finite or not of this layout, the vocabulary is not CLIP's (the format
            cannot hold a tokenizer), the file exists, or the disk is full.
    """
    check_free(path, overwrite=overwrite)
    check_single_file(path, info.layout)
    if spelling not in PUBLISHED:
        raise unknown("spelling", spelling, PUBLISHED)
    part_configs = _part_configs(info)
    ours = {part: _prepared(part, weights[part], part_configs[part], dtype) for part in PARTS}
    tensors = published_tensors(ours, spelling)
    if info.scheduler.get("prediction_type") == VELOCITY:
        tensors[VELOCITY_KEY] = torch.empty(0)
    if info.scheduler.get("rescale_betas_zero_snr"):
        tensors[ZERO_SNR_KEY] = torch.empty(0)
    metadata = {
        **part_configs,
        "force_zeros_for_empty_prompt": info.force_zeros_for_empty_prompt,
        "scheduler": info.scheduler,
        "settings": info.settings,
        **_own_settings(info),
    }
    with writing(path, overwrite=overwrite) as temporary:
        write_tensors(temporary, tensors, {METADATA: json.dumps(metadata, sort_keys=True)})


def save_unet(
    path: Path, info: ModelInfo, weights: Mapping[str, Tensor], *, dtype: torch.dtype | None = None
) -> None:
    """Write a UNet alone, under diffusers' names.

    Args:
        path: the file; must not exist.
        info: of the model that the UNet is a part of.
        weights: its state dict.
        dtype: number format to write; None keeps each tensor's.

    Raises:
        InputError: the weights are not finite or not of this layout, or the file cannot be written.
    """
    config = _part_configs(info)["unet"]
    tensors = _prepared("unet", weights, config, dtype)
    metadata = {"unet": config, **(_own_settings(info) if info.few_steps else {})}
    with writing(path) as temporary:
        write_tensors(temporary, tensors, {METADATA: json.dumps(metadata, sort_keys=True)})


def save_controlnet(
    path: Path, layout: ControlNetLayout, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a ControlNet as a folder that diffusers opens with ``ControlNetModel.from_pretrained``.

    Args:
        path: the folder; must not exist. To replace an older one, write inside ``saving.renewing``.
        layout: of the network.
        tensors: its state dict, on the CPU.
        metadata: of the file with the weights.

    Raises:
        InputError: the folder exists, or cannot be written.
    """
    with writing(path) as temporary:
        temporary.mkdir()
        write_tensors(temporary / CONTROLNET_FILE, tensors, metadata)
        write_json(temporary / "config.json", configs.controlnet_config(layout))


class Published(NamedTuple):
    """Differences of a published file's names from SDXL 1.0's.

    Attributes:
        linear: the second text encoder's projection is a linear layer's weight, not transposed.
        position_ids: the text encoders' positions, 0 to 76, are included.
    """

    linear: bool = False
    position_ids: bool = False


PUBLISHED = {
    "sdxl": Published(),
    "ssd-1b": Published(linear=True, position_ids=True),
    "vega": Published(linear=True),
}
"""The published single files, as recorded in tests/data/published-keys.txt.xz."""


def published_tensors(
    weights: Mapping[str, Mapping[str, Tensor]], spelling: str = "sdxl"
) -> dict[str, Tensor]:
    """Rename and reshape a model's tensors to those of a published single file.

    Args:
        weights: state dicts by ``keymap.PARTS``.
        spelling: one of ``PUBLISHED``.
    """
    tensors = {
        ORIGINAL_PREFIXES[part] + name: tensor
        for part in PARTS
        for name, tensor in original_tensors(part, weights[part]).items()
    }
    published = PUBLISHED[spelling]
    if published.linear:
        name = f"{ORIGINAL_PREFIXES['text_encoder_2']}text_projection"
        del tensors[name]
        tensors[f"{name}.weight"] = weights["text_encoder_2"]["text_projection.weight"]
    if published.position_ids:
        positions = torch.arange(77)[None]
        for part in ("text_encoder", "text_encoder_2"):
            tensors[f"{ORIGINAL_PREFIXES[part]}text_model.embeddings.position_ids"] = positions.clone()
    return tensors


def original_tensors(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape a state dict to the original spelling, without the part's prefix."""
    pieces: dict[str, list[str]] = {}
    targets = to_original(part, tensors)
    for name, (original, _) in sorted(targets.items(), key=lambda item: item[1][1].index):
        pieces.setdefault(original, []).append(name)
    return {
        original: targets[names[0]][1].write([tensors[name] for name in names])
        for original, names in pieces.items()
    }


def _own_settings(info: ModelInfo) -> dict[str, Any]:
    """What published formats have no place for."""
    found = {"settings": info.settings, "world": info.world, "few_steps": info.few_steps}
    return {name: value for name, value in found.items() if value}


def _part_configs(info: ModelInfo) -> dict[str, dict[str, Any]]:
    """Make the ``config.json`` of each network."""
    layout = info.layout
    return {
        "unet": configs.unet_config(layout.unet, layout.size // layout.vae.factor),
        "vae": configs.vae_config(layout.vae, layout.size),
        "text_encoder": configs.text_config(layout.text_encoder),
        "text_encoder_2": configs.text_config(layout.text_encoder_2),
    }


def _prepared(
    part: str, weights: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Cast a state dict, and check it against the configuration.

    Raises:
        InputError: it is not of the configuration's layout, or not finite in ``dtype``.
    """
    tensors = {name: tensor.detach().to(dtype or tensor.dtype) for name, tensor in weights.items()}
    layout_of(part, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, part)
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        number_format = "" if dtype is None else f" in {dtype}"
        raise InputError(
            f"{part}: NaN or infinity in {counted(len(broken), 'tensor')}{number_format}: {first_few(broken)}"
        )
    return tensors
