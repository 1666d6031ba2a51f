"""Single-file checkpoints in the original names, as ComfyUI and AUTOMATIC1111 use them, and bare networks.

Ours carry their configurations in the metadata, so that a miniature is read back as what it was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd1b.errors import InputError, shown, unknown
from ssd1b.layouts import VAELayout
from ssd1b.saving import check_free, writing
from ssd1b.weights.checkpoint import (
    SDXL_SCHEDULER,
    Checkpoint,
    ModelInfo,
    Part,
    part_of,
    picture_size,
)
from ssd1b.weights.configs import flag
from ssd1b.weights.files import Header, parse_json, read_header, some, write_tensors
from ssd1b.weights.folder import part_configurations, prepared, read_settings
from ssd1b.weights.foreign import foreign
from ssd1b.weights.keymap import ORIGINAL_PREFIXES, PARTS, to_original
from ssd1b.weights.prediction import (
    EPSILON,
    VELOCITY,
    VELOCITY_KEY,
    ZERO_SNR_KEY,
    of_scheduler,
    statements,
    zero_snr,
)
from ssd1b.weights.spellings import sections
from ssd1b.weights.stored import tensors_of
from ssd1b.weights.vocabulary import VOCABULARY_SIZE

_METADATA = "ssd1b"
"""Our entry in the metadata: a JSON object with the configurations that a folder has as files."""

_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


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
    parts = _parts(path, header, told)
    used = {name for part in parts.values() for tensor in part.tensors.values() for name in tensor.names}
    vae = parts["vae"].layout if "vae" in parts else VAELayout()
    assert isinstance(vae, VAELayout)
    said = statements(header.metadata, header.tensors)
    own = _told(told, "scheduler", path)
    if own:
        said = of_scheduler(own, "its scheduler", f"{path}: metadata") | said
    return Checkpoint(
        path=path,
        format="single file" if len(parts) > 1 else f"single {next(iter(parts))} file",
        parts=parts,
        size=picture_size(_told(told, "unet", path), vae, f"{path}: metadata"),
        scheduler=own or _scheduler(header, said),
        prediction=said,
        force_zeros_for_empty_prompt=flag(told, "force_zeros_for_empty_prompt", True, f"{path}: metadata"),
        settings=read_settings(told, f"{path}: metadata"),
        other=tuple(sorted(header.tensors.keys() - used - {VELOCITY_KEY, ZERO_SNR_KEY})),
    )


def _parts(path: Path, header: Header, told: Mapping[str, Any]) -> dict[str, Part]:
    """The networks of a file.

    Raises:
        InputError: there is none, or one that cannot be read; then what the file is, where that is known.
    """
    found = sections(header.tensors)
    parts = {}
    try:
        for part in PARTS:
            if part in found:
                table = tensors_of(part, path, found[part], header)
                parts[part] = part_of(part, table, _told(told, part, path), f"{path}: {part}")
        if not parts:
            raise InputError(
                f"{path}: no network of SDXL's family; it holds {some(header.tensors) or 'nothing'}"
            )
    except InputError as error:
        if kind := foreign(header.tensors):
            raise InputError(f"{path}: {kind}; only models of SDXL's family are read") from error
        raise
    return parts


def _told(told: Mapping[str, Any], name: str, path: Path) -> dict[str, Any] | None:
    value = told.get(name)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{path}: metadata: {name} must be an object, got {shown(value)}")
    return value


def _scheduler(header: Header, said: Mapping[str, str]) -> dict[str, Any]:
    scheduler = {**SDXL_SCHEDULER, "prediction_type": next(iter(said.values()), EPSILON)}
    if zero_snr(header.metadata, header.tensors):
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler


def save_single_file(
    path: Path,
    info: ModelInfo,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    spelling: str = "sdxl",
) -> None:
    """Write a model as one file in the original names, for ComfyUI, AUTOMATIC1111 and stable-diffusion.cpp.

    Args:
        path: the file; must not exist unless ``overwrite``.
        info: everything but the weights.
        weights: for each of ``keymap.PARTS`` its state dict.
        dtype: number format to write; None keeps each tensor's.
        overwrite: replace an older file.
        spelling: the published file whose names to write, one of ``PUBLISHED``; they differ in few.

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
    if spelling not in PUBLISHED:
        raise unknown("spelling", spelling, PUBLISHED)
    part_configs = part_configurations(info)
    ours = {part: prepared(part, weights[part], part_configs[part], dtype) for part in PARTS}
    tensors = published_tensors(ours, spelling)
    if info.scheduler.get("prediction_type") == VELOCITY:
        tensors[VELOCITY_KEY] = torch.empty(0)
    if info.scheduler.get("rescale_betas_zero_snr"):
        tensors[ZERO_SNR_KEY] = torch.empty(0)
    told = {
        **part_configs,
        "force_zeros_for_empty_prompt": info.force_zeros_for_empty_prompt,
        "scheduler": info.scheduler,
        "settings": info.settings,
    }
    with writing(path, overwrite=overwrite) as temporary:
        write_tensors(temporary, tensors, {_METADATA: json.dumps(told, sort_keys=True)})


class Published(NamedTuple):
    """How the names of a published file differ from those of SDXL 1.0's.

    Attributes:
        linear: the second text encoder's projection is a linear layer's weight, and not transposed.
        position_ids: the text encoders' positions, 0 to 76, come along.
    """

    linear: bool = False
    position_ids: bool = False


PUBLISHED = {
    "sdxl": Published(),
    "ssd-1b": Published(linear=True, position_ids=True),
    "vega": Published(linear=True),
}
"""The published single files, as they were recorded (tests/data/published-keys.txt.xz)."""


def published_tensors(
    weights: Mapping[str, Mapping[str, Tensor]], spelling: str = "sdxl"
) -> dict[str, Tensor]:
    """Rename and reshape a model's tensors to those of a published single file.

    Args:
        weights: for each of ``keymap.PARTS`` its state dict.
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
    forms = to_original(part, tensors)
    for name, (original, _) in sorted(forms.items(), key=lambda item: item[1][1].index):
        pieces.setdefault(original, []).append(name)
    return {
        original: forms[names[0]][1].write([tensors[name] for name in names])
        for original, names in pieces.items()
    }
