"""Inspection of folders and files: models in diffusers' format, single-file checkpoints, single networks.

Only headers and JSON files are read. Single files use the original names, as in ComfyUI and AUTOMATIC1111;
those written by this package have their configurations in the metadata, so that a miniature is read back
unchanged.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, NotFoundError, shown
from ssd1b.files import METADATA, check_link, check_path, check_regular, named
from ssd1b.layouts import STEMS, VAELayout
from ssd1b.numerals import counted
from ssd1b.weights import configs
from ssd1b.weights.checkpoint import SDXL_SCHEDULER, SETTINGS_FILE, Checkpoint, Part
from ssd1b.weights.detect import make_part
from ssd1b.weights.files import Header, first_few, parse_json, read_header, read_json
from ssd1b.weights.keymap import PARTS
from ssd1b.weights.other_models import other_model_kind
from ssd1b.weights.prediction import (
    EPSILON,
    VELOCITY_KEY,
    ZERO_SNR_KEY,
    declared_predictions,
    diffusers_prediction,
    scheduler_prediction,
    zero_snr,
)
from ssd1b.weights.spellings import Section, sections
from ssd1b.weights.stored import StoredTensor, locate_tensors
from ssd1b.weights.vocabulary import tokenizer_folder

_CLASSES = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}

_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


def open_checkpoint(path: Path, *, half: bool = False, prediction: str | None = None) -> Checkpoint:
    """Describe a diffusers folder, a single file or a bare network, without loading it.

    Args:
        path: folder or safetensors file.
        half: prefer a folder's ``fp16`` files, for running in 16 bits.
        prediction: what the UNet predicts, "epsilon" or "v"; None takes it from the files.

    Raises:
        InputError: there is no model, or not in safetensors; it is not of SDXL's family; or its weights
            contradict its configuration.
    """
    prediction_type = diffusers_prediction(prediction)
    check_is_model(path)
    if not path.is_dir():
        checkpoint = open_single_file(path)
    elif (path / "model_index.json").exists():
        checkpoint = _open_folder(path, half=half)
    else:
        checkpoint = _open_component(path, half=half)
    if prediction_type is None:
        return checkpoint
    return replace(
        checkpoint,
        scheduler={**checkpoint.scheduler, "prediction_type": prediction_type},
        prediction={"--prediction": prediction_type},
    )


def with_network(
    checkpoint: Checkpoint,
    part: str,
    path: Path,
    *,
    config: Path | None = None,
    prediction: str | None = None,
) -> Checkpoint:
    """Replace a network of a model by the one in a file, which may hold others, too.

    What a UNet predicts comes with it, if its file says so and the user does not; and the settings of a
    few-step one.

    Args:
        checkpoint: the model.
        part: one of ``keymap.PARTS``.
        path: a safetensors file with a network alone, in any spelling, or with a whole model.
        config: diffusers' ``config.json`` of the network; None takes what is in the file's metadata.
        prediction: what the user declares.

    Raises:
        InputError: the file does not have that network, or it does not fit the configuration.
    """
    other = open_single_file(path, only=part, config=config)
    changed = replace(checkpoint, parts={**checkpoint.parts, part: other.parts[part]})
    if part == "unet" and other.prediction and prediction is None:
        type_ = next(iter(other.prediction.values()))
        changed = replace(
            changed, prediction=other.prediction, scheduler={**changed.scheduler, "prediction_type": type_}
        )
    if part == "unet":
        settings = other.settings if other.few_steps else changed.settings
        changed = replace(changed, few_steps=other.few_steps, settings=settings)
    return changed


def check_is_model(path: Path) -> None:
    """Check that a path is a file, or a folder with a configuration; neither is read.

    Raises:
        InputError: it does not exist, or is a folder without a model or something else, such as a named pipe.
    """
    check_path(path)
    if not path.exists():
        check_link(path)
        raise NotFoundError(f"{named(path)}: no such file or folder")
    if not path.is_dir():
        check_regular(path)
    elif not any((path / name).exists() for name in ("model_index.json", "config.json")):
        files = sorted(path.glob("*.safetensors"))
        hint = f"; did you mean {named(files[0])}?" if files else ""
        raise NotFoundError(f"{named(path)}: no model here, neither model_index.json nor config.json{hint}")


def _open_folder(path: Path, *, half: bool) -> Checkpoint:
    """Describe the folder of a complete model; see ``open_checkpoint``."""
    index = read_json(path / "model_index.json")
    kind = configs.class_name(index, f"{path}: model_index.json")
    if not kind.startswith("StableDiffusionXL"):
        raise InputError(
            f"{path} is a {shown(kind)}; only SDXL's family (StableDiffusionXLPipeline) is supported"
        )
    parts = {part: _read_part(part, path / part, half) for part in PARTS if (path / part).is_dir()}
    tokenizers = {
        part: folder
        for part in ("text_encoder", "text_encoder_2")
        if part in parts and (folder := path / tokenizer_folder(part)).is_dir()
    }
    file = path / "scheduler" / "scheduler_config.json"
    scheduler, prediction = SDXL_SCHEDULER.copy(), dict[str, str]()
    if file.exists():
        scheduler = read_json(file)
        prediction = scheduler_prediction(scheduler, file.name, str(file))
    settings_file = path / SETTINGS_FILE
    settings = read_json(settings_file) if settings_file.exists() else {}
    unet_config = read_json(path / "unet" / "config.json") if "unet" in parts else None
    return Checkpoint(
        path=path,
        format="diffusers folder",
        parts=parts,
        size=_training_size(unet_config, parts, str(path)),
        scheduler=scheduler,
        prediction=prediction,
        tokenizers=tokenizers,
        force_zeros_for_empty_prompt=configs.flag(
            index, "force_zeros_for_empty_prompt", True, f"{path}: model_index.json"
        ),
        settings=_settings(settings, str(settings_file)),
        world=_text(settings, "world", str(settings_file)),
        few_steps=_text(settings, "few_steps", str(settings_file)),
    )


def _open_component(path: Path, *, half: bool) -> Checkpoint:
    """Describe the folder of a single network, a UNet or a VAE."""
    config = read_json(path / "config.json")
    kind = configs.class_name(config, f"{path}: config.json")
    if kind not in _CLASSES:
        raise InputError(
            f"{path} is a {shown(kind)}; only a complete model, or a {' or '.join(_CLASSES)}, is supported"
        )
    part = _CLASSES[kind]
    return Checkpoint(
        path=path,
        format=f"diffusers {part} folder",
        parts={part: _read_part(part, path, half)},
        size=_training_size(config if part == "unet" else None, {}, str(path)),
    )


def _read_part(part: str, folder: Path, half: bool) -> Part:
    table: dict[str, StoredTensor] = {}
    for file, header in _headers(folder, STEMS[part], half).items():
        section = Section("", {name: name for name in header.tensors})
        found = locate_tensors(part, file, [section], header)
        if duplicates := [name for name in found if name in table]:
            other = table[duplicates[0]].file.name
            raise InputError(f"{file}: duplicate tensor {first_few(duplicates)}, also in {other}")
        table |= found
    return make_part(part, table, read_json(folder / "config.json"), str(folder))


def _headers(folder: Path, stem: str, half: bool) -> dict[Path, Header]:
    """Read the headers of a network's weight files: a single one, or shards with an index."""
    for variant in (".fp16", "") if half else ("", ".fp16"):
        file = folder / f"{stem}{variant}.safetensors"
        if file.exists():
            return {file: read_header(file)}
        for name in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
            if (folder / name).exists():
                return _shards(folder / name)
    pickles = sorted(
        file.name for file in folder.iterdir() if file.suffix in (".bin", ".ckpt", ".pt", ".pth")
    )
    reason = f", only {pickles[0]}: a pickle, which can run code when opened" if pickles else ""
    raise NotFoundError(f"{folder}: no {stem}.safetensors{reason}")


def _shards(index: Path) -> dict[Path, Header]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: weight_map must have the file of each tensor")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if name in ("", ".", "..") or Path(name).name != name]
    if outside:
        raise InputError(f"{index}: {shown(outside[0])} is not the name of a file in the same folder")
    headers = {name: read_header(index.parent / name) for name in names}
    missing = [tensor for tensor, name in weight_map.items() if tensor not in headers[name].tensors]
    if missing:
        raise InputError(
            f"{index}: {counted(len(missing), 'tensor')} not in the files it lists: {first_few(missing)}"
        )
    return {index.parent / name: header for name, header in headers.items()}


def open_single_file(path: Path, *, only: str | None = None, config: Path | None = None) -> Checkpoint:
    """Describe a single-file checkpoint, or a bare UNet or VAE in either spelling.

    Args:
        path: the file.
        only: the one network of ``keymap.PARTS`` to describe; None describes all.
        config: diffusers' ``config.json`` of that network, instead of what is in the file's metadata.

    Raises:
        InputError: the file is not safetensors, or has no such network of SDXL's family.
    """
    header = read_header(path)
    edm = [name for name in _EDM if name in header.tensors]
    if edm:
        raise InputError(
            f"{path}: an EDM model ({edm[0]}), whose noise schedule differs from SDXL's, is not supported"
        )
    where = f"{path}: metadata"
    metadata = parse_json(header.metadata[METADATA], where) if METADATA in header.metadata else {}
    if only is not None and config is not None:
        metadata = {**metadata, only: read_json(config)}
    parts = _parts(path, header, metadata, only, own_config=config is not None)
    used = {name for part in parts.values() for tensor in part.tensors.values() for name in tensor.names}
    prediction = declared_predictions(header.metadata, header.tensors)
    scheduler = _table(metadata, "scheduler", path)
    if scheduler:
        prediction = scheduler_prediction(scheduler, "its scheduler", where) | prediction
    return Checkpoint(
        path=path,
        format="single file" if len(parts) > 1 else f"single {next(iter(parts))} file",
        parts=parts,
        size=_training_size(_table(metadata, "unet", path), parts, where),
        scheduler=scheduler or _scheduler(header, prediction),
        prediction=prediction,
        force_zeros_for_empty_prompt=configs.flag(metadata, "force_zeros_for_empty_prompt", True, where),
        settings=_settings(metadata, where),
        world=_text(metadata, "world", where),
        few_steps=_text(metadata, "few_steps", where),
        unused_tensors=tuple(sorted(header.tensors.keys() - used - {VELOCITY_KEY, ZERO_SNR_KEY})),
    )


def _parts(
    path: Path, header: Header, metadata: Mapping[str, Any], only: str | None, *, own_config: bool
) -> dict[str, Part]:
    """Describe the networks of a file, or one of them.

    A text encoder with a configuration of its own is the one that is asked for; others are known by width.

    Raises:
        InputError: there is none, or one is invalid; the error says what the file is if that is known.
    """
    is_text = own_config and only in ("text_encoder", "text_encoder_2")
    found = sections(header.tensors, text=only if is_text else None)
    parts = {}
    try:
        if found and only is not None and only not in found:
            raise InputError(f"{named(path)}: it has no {only}, only {', '.join(found)}")
        for part in PARTS if only is None else (only,):
            if part in found:
                table = locate_tensors(part, path, found[part], header)
                parts[part] = make_part(part, table, _table(metadata, part, path), f"{path}: {part}")
        if not parts:
            raise InputError(
                f"{path}: no network of SDXL's family; it contains {first_few(header.tensors) or 'nothing'}"
            )
    except InputError as error:
        if kind := other_model_kind(header.tensors):
            raise InputError(f"{path}: {kind}; only models of SDXL's family are supported") from error
        raise
    return parts


def _table(metadata: Mapping[str, Any], name: str, path: Path) -> dict[str, Any] | None:
    value = metadata.get(name)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{path}: metadata: {name} must be an object, got {shown(value)}")
    return value


def _scheduler(header: Header, prediction: Mapping[str, str]) -> dict[str, Any]:
    scheduler = {**SDXL_SCHEDULER, "prediction_type": next(iter(prediction.values()), EPSILON)}
    if zero_snr(header.metadata, header.tensors):
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler


def _settings(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"{where}: settings must be an object, got {shown(settings)}")
    return settings


def _text(content: Mapping[str, Any], name: str, where: str) -> str | None:
    value = content.get(name)
    if not isinstance(value, str | None):
        raise InputError(f"{where}: {name} must be text, got {shown(value)}")
    return value


def _training_size(unet_config: Mapping[str, Any] | None, parts: Mapping[str, Part], where: str) -> int:
    """Compute the side in pixels of the images a UNet was trained on from its configuration; 1024 without.

    Raises:
        InputError: ``sample_size`` is invalid.
    """
    cells = configs.sample_size(unet_config or {}, where)
    vae = parts["vae"].layout if "vae" in parts else VAELayout()
    assert isinstance(vae, VAELayout)
    return 1024 if cells is None else cells * vae.factor
