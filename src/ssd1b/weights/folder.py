"""Diffusers folders, read and written: ``model_index.json``, a folder a network, fp16 variants, shards."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd1b.errors import InputError, shown
from ssd1b.files import named
from ssd1b.layouts import VAELayout
from ssd1b.saving import writing
from ssd1b.weights import configs
from ssd1b.weights.checkpoint import (
    SDXL_SCHEDULER,
    SETTINGS_FILE,
    Checkpoint,
    ModelInfo,
    Part,
    layout_of,
    part_of,
    picture_size,
)
from ssd1b.weights.files import (
    Header,
    is_finite,
    read_header,
    read_json,
    some,
    write_json,
    write_tensors,
)
from ssd1b.weights.keymap import PARTS
from ssd1b.weights.prediction import of_scheduler
from ssd1b.weights.spellings import Section
from ssd1b.weights.stored import StoredTensor, tensors_of
from ssd1b.weights.vocabulary import PADDING, clip_vocabulary, write_tokenizer

_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""Name of each network's weight file."""

_CLASSES = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def tokenizer_folder(text_encoder: str) -> str:
    """``tokenizer_2`` for ``text_encoder_2``."""
    return text_encoder.replace("text_encoder", "tokenizer")


def open_folder(path: Path, *, half: bool) -> Checkpoint:
    """Describe the folder of a whole model; ``half`` prefers its fp16 files.

    Raises:
        InputError: not SDXL's family, no safetensors, or weights that contradict their configuration.
    """
    index = read_json(path / "model_index.json")
    kind = configs.class_name(index, f"{path}: model_index.json")
    if not kind.startswith("StableDiffusionXL"):
        raise InputError(
            f"{path}: holds a {shown(kind)}; only SDXL's family (StableDiffusionXLPipeline) is read"
        )
    parts = {part: _read_part(part, path / part, half) for part in PARTS if (path / part).is_dir()}
    tokenizers = {
        part: folder
        for part in ("text_encoder", "text_encoder_2")
        if part in parts and (folder := path / tokenizer_folder(part)).is_dir()
    }
    scheduler = path / "scheduler" / "scheduler_config.json"
    noise = read_json(scheduler) if scheduler.exists() else SDXL_SCHEDULER.copy()
    settings = path / SETTINGS_FILE
    return Checkpoint(
        path=path,
        format="diffusers folder",
        parts=parts,
        size=_size(path, parts),
        scheduler=noise,
        prediction=of_scheduler(noise, scheduler.name, str(scheduler)) if scheduler.exists() else {},
        tokenizers=tokenizers,
        force_zeros_for_empty_prompt=configs.flag(
            index, "force_zeros_for_empty_prompt", True, f"{path}: model_index.json"
        ),
        settings=read_settings(read_json(settings), str(settings)) if settings.exists() else {},
    )


def open_component(path: Path, *, half: bool) -> Checkpoint:
    """Describe the folder of a single network, a UNet or a VAE."""
    config = read_json(path / "config.json")
    kind = configs.class_name(config, f"{path}: config.json")
    if kind not in _CLASSES:
        raise InputError(
            f"{path}: holds a {shown(kind)}; a whole model is read, or a {' or '.join(_CLASSES)}"
        )
    part = _CLASSES[kind]
    return Checkpoint(
        path=path,
        format=f"diffusers {part} folder",
        parts={part: _read_part(part, path, half)},
        size=picture_size(config if part == "unet" else None, VAELayout(), str(path)),
    )


def read_settings(told: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings in the content of ``ssd1b.json``."""
    settings = told.get("settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"{where}: settings must be an object, got {shown(settings)}")
    return settings


def _size(path: Path, parts: Mapping[str, Part]) -> int:
    vae = parts["vae"].layout if "vae" in parts else VAELayout()
    assert isinstance(vae, VAELayout)
    return picture_size(read_json(path / "unet" / "config.json") if "unet" in parts else None, vae, str(path))


def _read_part(part: str, folder: Path, half: bool) -> Part:
    table: dict[str, StoredTensor] = {}
    for file, header in _headers(folder, _STEMS[part], half).items():
        section = Section("", {name: name for name in header.tensors})
        found = tensors_of(part, file, [section], header)
        if twice := [name for name in found if name in table]:
            raise InputError(f"{file}: {some(twice)} is there twice, also in {table[twice[0]].file.name}")
        table |= found
    return part_of(part, table, read_json(folder / "config.json"), str(folder))


def _headers(folder: Path, stem: str, half: bool) -> dict[Path, Header]:
    """The weight files of one network: a single one, or shards with an index."""
    for variant in (".fp16", "") if half else ("", ".fp16"):
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.exists():
            return {whole: read_header(whole)}
        for name in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
            if (folder / name).exists():
                return _shards(folder / name)
    pickles = sorted(
        file.name for file in folder.iterdir() if file.suffix in (".bin", ".ckpt", ".pt", ".pth")
    )
    reason = f", only {pickles[0]}: a pickle, which can run code when opened" if pickles else ""
    raise InputError(f"{folder}: no {stem}.safetensors{reason}")


def _shards(index: Path) -> dict[Path, Header]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index}: weight_map must give the file of each tensor")
    names = sorted(set(places.values()))
    outside = [name for name in names if name in ("", ".", "..") or Path(name).name != name]
    if outside:
        raise InputError(f"{index}: {shown(outside[0])} is not the name of a file beside it")
    headers = {name: read_header(index.parent / name) for name in names}
    lost = [tensor for tensor, name in places.items() if tensor not in headers[name].tensors]
    if lost:
        raise InputError(f"{index}: {len(lost)} tensors are not in the file it names: {some(lost)}")
    return {index.parent / name: header for name, header in headers.items()}


def save_folder(
    path: Path,
    info: ModelInfo,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model as a folder that diffusers opens with ``StableDiffusionXLPipeline.from_pretrained``.

    Nothing is half-written: the folder appears whole.

    Args:
        path: the folder; must not exist. To replace an older one, write within ``saving.renewing``.
        info: everything but the weights.
        weights: for each of ``keymap.PARTS`` its state dict.
        dtype: number format to write; None keeps each tensor's.

    Raises:
        InputError: weights that are not finite or not of this layout, a folder in the way, or a full disk.
    """
    if os.path.lexists(path):
        raise InputError(f"{named(path)} exists already: choose another name")
    part_configs = part_configurations(info)
    with writing(path) as temporary:
        for part in PARTS:
            tensors = prepared(part, weights[part], part_configs[part], dtype)
            (temporary / part).mkdir(parents=True)
            write_tensors(temporary / part / f"{_STEMS[part]}.safetensors", tensors, {})
            write_json(temporary / part / "config.json", part_configs[part])
        for part, padding in PADDING.items():
            _write_tokenizer(temporary / tokenizer_folder(part), info.tokenizers.get(part), padding)
        (temporary / "scheduler").mkdir()
        write_json(temporary / "scheduler" / "scheduler_config.json", info.scheduler)
        if info.settings:
            write_json(temporary / SETTINGS_FILE, {"settings": info.settings})
        write_json(temporary / "model_index.json", _model_index(info, part_configs))


def part_configurations(info: ModelInfo) -> dict[str, dict[str, Any]]:
    """The ``config.json`` of each network."""
    layout = info.layout
    return {
        "unet": configs.unet_config(layout.unet, layout.size // layout.vae.factor),
        "vae": configs.vae_config(layout.vae, layout.size),
        "text_encoder": configs.text_config(layout.text_encoder),
        "text_encoder_2": configs.text_config(layout.text_encoder_2),
    }


def prepared(
    part: str, weights: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """A state dict ready to be written: cast, and checked against the configuration beside it.

    Raises:
        InputError: not of the layout that the configuration says, or not finite in ``dtype``.
    """
    tensors = {name: tensor.detach().to(dtype or tensor.dtype) for name, tensor in weights.items()}
    layout_of(part, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, part)
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        number_format = "" if dtype is None else f" in {dtype}"
        raise InputError(f"{part}: {len(broken)} tensors are not finite{number_format}: {some(broken)}")
    return tensors


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
