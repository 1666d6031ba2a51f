"""Single-file checkpoints in the original names, as ComfyUI and AUTOMATIC1111 use them, and bare networks.

Ours carry their configurations in the metadata, so that a miniature is read back as what it was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd1b.errors import InputError
from ssd1b.layouts import VAELayout
from ssd1b.saving import check_free, writing
from ssd1b.weights.checkpoint import (
    SDXL_SCHEDULER,
    Checkpoint,
    ModelInfo,
    StoredTensor,
    part_of,
    picture_size,
    store,
)
from ssd1b.weights.files import Header, parse_json, read_header, some, write_tensors
from ssd1b.weights.folder import part_configurations, prepared, read_settings
from ssd1b.weights.keymap import ORIGINAL_PREFIXES, PARTS, PLAIN, UNUSED, from_original, our_name, to_original
from ssd1b.weights.vocabulary import VOCABULARY_SIZE

_METADATA = "ssd1b"
"""Our entry in the metadata: a JSON object with the configurations that a folder has as files."""

# ComfyUI's signs of how a UNet was trained: tensors of these names (comfy/supported_models.py, class SDXL).
_VELOCITY, _ZERO_SNR = "v_pred", "ztsnr"
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


class _Section(NamedTuple):
    """The tensors of one network in a file."""

    part: str
    prefix: str
    original: bool
    """In the original names; else in diffusers'."""


_BARE = {
    "input_blocks.0.0.weight": _Section("unet", "", True),
    "down_blocks.0.resnets.0.conv1.weight": _Section("unet", "", False),
    "encoder.down.0.block.0.conv1.weight": _Section("vae", "", True),
    "encoder.down_blocks.0.resnets.0.conv1.weight": _Section("vae", "", False),
}
"""Bare networks, by a tensor that each is known by."""


def open_single_file(path: Path) -> Checkpoint:
    """Describe a single-file checkpoint, or a bare UNet or VAE in either spelling.

    Raises:
        InputError: not safetensors, or no network of SDXL's family in it.
    """
    header = read_header(path)
    edm = [name for name in _EDM if name in header.tensors]
    if edm:
        raise InputError(
            f"{path}: an EDM model ({edm[0]}), whose noise schedule is not SDXL's; it is not read"
        )
    told = parse_json(header.metadata[_METADATA], f"{path}: metadata") if _METADATA in header.metadata else {}
    sections = _sections(header, path)
    other = set(header.tensors) - {_VELOCITY, _ZERO_SNR}
    parts = {}
    for section in sections:
        table = _table(section, header, path)
        parts[section.part] = part_of(
            section.part, table, _told(told, section.part, path), f"{path}: {section.part}"
        )
        other -= {name for name in header.tensors if name.startswith(section.prefix)}
    vae = parts["vae"].layout if "vae" in parts else VAELayout()
    assert isinstance(vae, VAELayout)
    return Checkpoint(
        path=path,
        format="single file" if len(parts) > 1 else f"single {sections[0].part} file",
        parts=parts,
        size=picture_size(_told(told, "unet", path), vae),
        scheduler=_told(told, "scheduler", path) or _scheduler(header),
        force_zeros_for_empty_prompt=bool(told.get("force_zeros_for_empty_prompt", True)),
        settings=read_settings(told, f"{path}: metadata"),
        other=tuple(sorted(other)),
    )


def _sections(header: Header, path: Path) -> list[_Section]:
    found = [
        _Section(part, prefix, True)
        for part, prefix in ORIGINAL_PREFIXES.items()
        if any(name.startswith(prefix) for name in header.tensors)
    ]
    found = found or [section for name, section in _BARE.items() if name in header.tensors]
    if not found:
        kind = "a LoRA" if any("lora" in name for name in header.tensors) else "no network of SDXL's family"
        raise InputError(f"{path}: {kind}, not a checkpoint; it starts with {some(header.tensors)}")
    return found


def _table(section: _Section, header: Header, path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a network; unknown ones keep their names, to be reported at loading."""
    part, prefix, original = section
    stored = [name for name in header.tensors if name.startswith(prefix)]
    bare = [name.removeprefix(prefix) for name in stored]
    translated = (
        from_original(part, bare) if original else {n: [(our_name(part, n) or n, PLAIN)] for n in bare}
    )
    table: dict[str, StoredTensor] = {}
    for full, name in zip(stored, bare, strict=True):
        if name.rpartition(".")[2] in UNUSED:
            continue
        for ours, form in translated.get(name, [(full, PLAIN)]):
            store(table, ours, file=path, stored=full, entry=header.tensors[full], form=form)
    return table


def _told(told: Mapping[str, Any], name: str, path: Path) -> dict[str, Any] | None:
    value = told.get(name)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{path}: metadata: {name} must be an object, got {value!r:.80}")
    return value


def _scheduler(header: Header) -> dict[str, Any]:
    scheduler = SDXL_SCHEDULER.copy()
    if _VELOCITY in header.tensors:
        scheduler["prediction_type"] = "v_prediction"
    if _ZERO_SNR in header.tensors:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler


def save_single_file(
    path: Path,
    info: ModelInfo,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as one file in the original names, for ComfyUI, AUTOMATIC1111 and stable-diffusion.cpp.

    Args:
        path: the file; must not exist unless ``overwrite``.
        info: everything but the weights.
        weights: for each of ``keymap.PARTS`` its state dict.
        dtype: number format to write; None keeps each tensor's.
        overwrite: replace an older file.

    Raises:
        InputError: weights that are not finite or not of this layout, a vocabulary that is not CLIP's (the
            format has no place for a tokenizer), a file in the way, or a full disk.
    """
    check_free(path, overwrite=overwrite)
    sizes = {info.layout.text_encoder.vocab_size, info.layout.text_encoder_2.vocab_size}
    if sizes != {VOCABULARY_SIZE}:
        raise InputError(
            f"{path}: a single file has no place for a tokenizer other than CLIP's; write a folder"
        )
    part_configs = part_configurations(info)
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        ours = prepared(part, weights[part], part_configs[part], dtype)
        tensors |= {
            ORIGINAL_PREFIXES[part] + name: tensor for name, tensor in original_tensors(part, ours).items()
        }
    if info.scheduler.get("prediction_type") == "v_prediction":
        tensors[_VELOCITY] = torch.empty(0)
    if info.scheduler.get("rescale_betas_zero_snr"):
        tensors[_ZERO_SNR] = torch.empty(0)
    told = {
        **part_configs,
        "force_zeros_for_empty_prompt": info.force_zeros_for_empty_prompt,
        "scheduler": info.scheduler,
        "settings": info.settings,
    }
    with writing(path, overwrite=overwrite) as temporary:
        write_tensors(temporary, tensors, {_METADATA: json.dumps(told, sort_keys=True)})


def original_tensors(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape a state dict to the original spelling, without the part's prefix."""
    pieces: dict[str, list[str]] = {}
    forms = to_original(part, tensors)
    for name, (original, _) in sorted(forms.items(), key=lambda item: item[1][1].index):
        pieces.setdefault(original, []).append(name)
    return {
        original: forms[names[0]][1].write([tensors[name] for name in names])
        for original, names in pieces.items()
    }
