"""What a folder or file holds: a model in diffusers' format, a single-file checkpoint, or one network.

Only headers and JSON files are read. Single files use the original names, as ComfyUI and AUTOMATIC1111 do;
those that this package wrote carry their configurations in the metadata, so that a miniature is read back as
it was.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, NotFoundError, shown
from ssd1b.files import check_link, check_path, check_regular, named
from ssd1b.layouts import VAELayout
from ssd1b.weights import configs
from ssd1b.weights.checkpoint import SDXL_SCHEDULER, SETTINGS_FILE, Checkpoint, Part
from ssd1b.weights.detect import make_part
from ssd1b.weights.files import Header, first_few, parse_json, read_header, read_json
from ssd1b.weights.keymap import METADATA, PARTS, STEMS
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
    """Find out what a diffusers folder, a single file or a bare network holds; nothing is loaded.

    Args:
        path: folder or safetensors file.
        half: take a folder's ``fp16`` files where it has both, for running in 16 bits.
        prediction: what the UNet predicts, "epsilon" or "v", whatever the files say; None believes them.

    Raises:
        InputError: nothing there, no safetensors, not SDXL's family, or weights that contradict the config.
    """
    word = diffusers_prediction(prediction)
    checkpoint = _opened(path, half)
    if word is None:
        return checkpoint
    return replace(
        checkpoint,
        scheduler={**checkpoint.scheduler, "prediction_type": word},
        prediction={"--prediction": word},
    )


def check_is_model(path: Path) -> None:
    """See that there is something to open: a file, or a folder with a configuration; neither is read.

    Raises:
        InputError: nothing is there, a folder without a model, or something else, as a named pipe.
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


def _opened(path: Path, half: bool) -> Checkpoint:
    check_is_model(path)
    if not path.is_dir():
        return open_single_file(path)
    if (path / "model_index.json").exists():
        return _open_folder(path, half=half)
    return _open_component(path, half=half)


def _open_folder(path: Path, *, half: bool) -> Checkpoint:
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
    own = read_json(settings) if settings.exists() else {}
    return Checkpoint(
        path=path,
        format="diffusers folder",
        parts=parts,
        size=_folder_size(path, parts),
        scheduler=noise,
        prediction=scheduler_prediction(noise, scheduler.name, str(scheduler)) if scheduler.exists() else {},
        tokenizers=tokenizers,
        force_zeros_for_empty_prompt=configs.flag(
            index, "force_zeros_for_empty_prompt", True, f"{path}: model_index.json"
        ),
        settings=_settings(own, str(settings)),
        world=_world(own, str(settings)),
    )


def _open_component(path: Path, *, half: bool) -> Checkpoint:
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
        size=_picture_size(config if part == "unet" else None, VAELayout(), str(path)),
    )


def _folder_size(path: Path, parts: Mapping[str, Part]) -> int:
    vae = parts["vae"].layout if "vae" in parts else VAELayout()
    assert isinstance(vae, VAELayout)
    return _picture_size(
        read_json(path / "unet" / "config.json") if "unet" in parts else None, vae, str(path)
    )


def _read_part(part: str, folder: Path, half: bool) -> Part:
    table: dict[str, StoredTensor] = {}
    for file, header in _headers(folder, STEMS[part], half).items():
        section = Section("", {name: name for name in header.tensors})
        found = locate_tensors(part, file, [section], header)
        if twice := [name for name in found if name in table]:
            raise InputError(
                f"{file}: {first_few(twice)} is there twice, also in {table[twice[0]].file.name}"
            )
        table |= found
    return make_part(part, table, read_json(folder / "config.json"), str(folder))


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
    raise NotFoundError(f"{folder}: no {stem}.safetensors{reason}")


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
        raise InputError(f"{index}: {len(lost)} tensors are not in the file it names: {first_few(lost)}")
    return {index.parent / name: header for name, header in headers.items()}


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
    metadata = (
        parse_json(header.metadata[METADATA], f"{path}: metadata") if METADATA in header.metadata else {}
    )
    parts = _parts(path, header, metadata)
    used = {name for part in parts.values() for tensor in part.tensors.values() for name in tensor.names}
    vae = parts["vae"].layout if "vae" in parts else VAELayout()
    assert isinstance(vae, VAELayout)
    said = declared_predictions(header.metadata, header.tensors)
    own = _table(metadata, "scheduler", path)
    if own:
        said = scheduler_prediction(own, "its scheduler", f"{path}: metadata") | said
    return Checkpoint(
        path=path,
        format="single file" if len(parts) > 1 else f"single {next(iter(parts))} file",
        parts=parts,
        size=_picture_size(_table(metadata, "unet", path), vae, f"{path}: metadata"),
        scheduler=own or _scheduler(header, said),
        prediction=said,
        force_zeros_for_empty_prompt=configs.flag(
            metadata, "force_zeros_for_empty_prompt", True, f"{path}: metadata"
        ),
        settings=_settings(metadata, f"{path}: metadata"),
        world=_world(metadata, f"{path}: metadata"),
        unused_tensors=tuple(sorted(header.tensors.keys() - used - {VELOCITY_KEY, ZERO_SNR_KEY})),
    )


def _parts(path: Path, header: Header, metadata: Mapping[str, Any]) -> dict[str, Part]:
    """The networks of a file.

    Raises:
        InputError: there is none, or one that cannot be read; then what the file is, where that is known.
    """
    found = sections(header.tensors)
    parts = {}
    try:
        for part in PARTS:
            if part in found:
                table = locate_tensors(part, path, found[part], header)
                parts[part] = make_part(part, table, _table(metadata, part, path), f"{path}: {part}")
        if not parts:
            raise InputError(
                f"{path}: no network of SDXL's family; it holds {first_few(header.tensors) or 'nothing'}"
            )
    except InputError as error:
        if kind := other_model_kind(header.tensors):
            raise InputError(f"{path}: {kind}; only models of SDXL's family are read") from error
        raise
    return parts


def _table(metadata: Mapping[str, Any], name: str, path: Path) -> dict[str, Any] | None:
    value = metadata.get(name)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{path}: metadata: {name} must be an object, got {shown(value)}")
    return value


def _scheduler(header: Header, said: Mapping[str, str]) -> dict[str, Any]:
    scheduler = {**SDXL_SCHEDULER, "prediction_type": next(iter(said.values()), EPSILON)}
    if zero_snr(header.metadata, header.tensors):
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler


def _settings(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings in the content of ``ssd1b.json``."""
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"{where}: settings must be an object, got {shown(settings)}")
    return settings


def _world(content: Mapping[str, Any], where: str) -> str | None:
    world = content.get("world")
    if not isinstance(world, str | None):
        raise InputError(f"{where}: world must be a text, got {shown(world)}")
    return world


def _picture_size(unet_config: Mapping[str, Any] | None, vae: VAELayout, where: str) -> int:
    """Side in pixels of the square picture a UNet was trained for: its configuration's, or 1024.

    Raises:
        InputError: ``sample_size`` is no size of latents.
    """
    cells = configs.sample_size(unet_config or {}, where)
    return 1024 if cells is None else cells * vae.factor
