"""Describe a model on disk, an adapter, a control network or a generated image; nothing is downloaded."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch

from ssd1b.actions.rerun import is_known, reproduction_command
from ssd1b.adapters.control_loras import open_control_lora
from ssd1b.adapters.ip_adapters import open_ip_adapter
from ssd1b.adapters.matching import carried_share, match
from ssd1b.adapters.merging import open_lora
from ssd1b.adapters.names import dictionary
from ssd1b.adapters.reading import AdapterFile
from ssd1b.controls import BUILT_IN, STEMS, find_network
from ssd1b.embeddings import read_embedding
from ssd1b.enlarging import load_network
from ssd1b.errors import InputError, shown
from ssd1b.few_steps import Recognised, recognise
from ssd1b.files import expand_path, named
from ssd1b.images import read_recipe
from ssd1b.layouts import (
    NAMED,
    UNETS,
    ControlNetLayout,
    IPAdapterLayout,
    ModelLayout,
    UNetLayout,
    encoder_of,
    model_layout,
)
from ssd1b.loras import lora_of
from ssd1b.model import Model
from ssd1b.recipe import Recipe
from ssd1b.settings import resolve_settings
from ssd1b.upscalers import identify_network
from ssd1b.weights.checkpoint import Checkpoint, Layout, Part
from ssd1b.weights.controls import MisfitError, open_control
from ssd1b.weights.files import first_few, read_header
from ssd1b.weights.other_models import (
    control_kind,
    is_adapter_file,
    is_control_file,
    is_embedding_file,
    is_ip_adapter_file,
    other_model_kind,
)
from ssd1b.weights.spellings import sections


def describe_image(path: str) -> dict[str, Any]:
    """Return the recipe in an image, or another program's parameters, and the command to generate it again.

    Raises:
        InputError: the file cannot be read, or holds no settings.
    """
    recipe = read_recipe(path)
    facts = {"path": path, "command": reproduction_command(path, recipe)}
    if not isinstance(recipe, Recipe):
        return facts | {"parameters": asdict(recipe), "not_reproduced": recipe.unreproduced()}
    return facts | {"recipe": asdict(recipe), "model_is_known": is_known(recipe.model)}


def describe_model(name: str) -> dict[str, Any]:
    """Return a model's layout, parameter counts, scheduler, default settings and notes.

    Raises:
        InputError: there is no such model on disk, or its files are damaged.
    """
    found = Model.find(name, offline=True)
    checkpoint = found.checkpoint
    settings, problems = _default_settings(found)
    return {
        "model": found.name,
        "path": str(checkpoint.path),
        "commit": found.commit,
        "format": checkpoint.format,
        "layout": checkpoint.name,
        "family": checkpoint.family,
        "size": checkpoint.size,
        "transformer_blocks": checkpoint.unet and checkpoint.unet.transformer_blocks,
        "parts": {
            part: {
                "parameters": each.parameters,
                "bytes": each.size_in_bytes,
                "dtypes": [str(dtype).removeprefix("torch.") for dtype in each.dtypes],
                "layout": asdict(each.layout),
            }
            for part, each in checkpoint.parts.items()
        },
        "scheduler": checkpoint.scheduler,
        "prediction": checkpoint.prediction,
        "settings": settings,
        "few_steps": _few_steps(found.few_steps),
        "notes": [*(f"with the LoRA {each.file.path}" for each in found.own), *checkpoint.notes, *problems],
    }


_METADATA = {
    "ss_output_name": "name", "modelspec.title": "title", "modelspec.author": "author",
    "ss_base_model_version": "base model", "ss_sd_model_name": "base file",
    "modelspec.architecture": "architecture", "modelspec.description": "description",
    "ss_network_module": "trained by", "software": "software",
    "ss_network_dim": "network dim", "ss_network_alpha": "network alpha", "ss_resolution": "resolution",
    "ss_num_train_images": "images", "ss_num_epochs": "epochs", "ss_steps": "steps",
    "ss_learning_rate": "learning rate", "ss_optimizer": "optimizer", "ss_training_comment": "comment",
    "modelspec.license": "license", "modelspec.date": "date",
}  # fmt: skip
"""Metadata that are shown, by their keys in kohya's files and in those of Stability AI's "modelspec"."""

_MOST_WORDS = 10


def is_adapter(name: str) -> bool:
    """Whether a name is a file, or PEFT's folder, of a LoRA or another adapter."""
    path = Path(expand_path(name))
    if path.is_dir():
        return (path / "adapter_config.json").is_file()
    return _is_file_of(path, is_adapter_file)


def is_embedding(name: str) -> bool:
    """Whether a name is a file of an embedding."""
    return _is_file_of(Path(expand_path(name)), is_embedding_file)


def _is_file_of(path: Path, kind: Callable[[Mapping[str, Any]], bool]) -> bool:
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        return False
    try:
        return kind(read_header(path).tensors)
    except InputError:  # reported as that of a model
        return False


def describe_embedding(name: str) -> dict[str, Any]:
    """Return an embedding's word, number of vectors and hash.

    Raises:
        InputError: the file is damaged or for another family of models.
    """
    found = read_embedding(name)
    return {
        "embedding": found.file.path, "word": found.word, "vectors": found.vectors,
        "sha256": found.file.sha256,
    }  # fmt: skip


def describe_adapter(name: str, model: str | None = None) -> dict[str, Any]:
    """Return an adapter's kinds, ranks and metadata, and what it changes in models.

    Args:
        name: the file, or PEFT's folder.
        model: the model that it is compared with; None for all published layouts and the miniatures.

    Raises:
        InputError: the file is damaged or no adapter of SDXL's family, or there is no such model on disk.
    """
    lora = lora_of(name)
    adapter = open_lora(lora)
    if model is None:
        layouts = {each: model_layout(each) for each in NAMED}
    else:
        layouts = {model: Model.find(model, offline=True).layout}
    alphas = (each.numbers.get("alpha") for each in adapter.modules.values())
    return {
        "path": str(adapter.path),
        "short_hash": lora.short_hash,
        "kinds": adapter.kinds,
        "ranks": _counts(each.rank for each in adapter.modules.values() if each.rank is not None),
        "alphas": _counts(f"{alpha:g}" for alpha in alphas if alpha is not None),
        "parts": _parts(adapter),
        "keys": adapter.key_count,
        "metadata": _shown_metadata(adapter.metadata),
        "trigger_words": trigger_words(adapter.metadata),
        "few_steps": _few_steps(recognise(str(adapter.path), adapter.metadata)),
        "models": {each: _fit(adapter, layout) for each, layout in layouts.items()},
    }


def is_control(name: str) -> bool:
    """Whether a name is of a network that follows a picture: built in, a file, or diffusers' folder."""
    path = BUILT_IN.get(name) or Path(expand_path(name))
    if path.is_dir() and not any((path / stem).is_file() for stem in STEMS):
        return False
    if not path.is_dir() and (not path.is_file() or path.suffix.lower() != ".safetensors"):
        return False
    try:
        file = path if path.is_file() else find_network(name)[0]
        return is_control_file(read_header(file).tensors)
    except InputError:  # reported as that of a model
        return False


def describe_control(name: str, model: str | None = None) -> dict[str, Any]:
    """Return what a ControlNet, Control-LoRA or T2I-Adapter is, and which models it fits.

    Args:
        name: built in, a file, or a folder in diffusers' format.
        model: the model that it is compared with; None for all published layouts and the miniatures.

    Raises:
        InputError: the file is damaged or for another family, or there is no such model on disk.
    """
    file, configured = find_network(name)
    kind = control_kind(read_header(file).tensors)
    is_lora = kind == "control_lora"
    part, fits = _fitting(file, model, open_control_lora if is_lora else open_control)
    return {
        "path": str(file),
        "kind": kind,
        "like": None if is_lora else part and _like(part.layout),
        **_sizes(file),
        "order": configured.get("order", "rgb"),
        "metadata": _shown_metadata(read_header(file).metadata),
        "models": fits,
    }


def is_ip_adapter(name: str) -> bool:
    """Whether a name is a file of an IP-Adapter."""
    return _is_file_of(Path(expand_path(name)), is_ip_adapter_file)


def describe_ip_adapter(name: str, model: str | None = None) -> dict[str, Any]:
    """Return what an IP-Adapter takes and gives, and which models it fits.

    Args:
        name: the file.
        model: the model that it is compared with; None for all published layouts and the miniatures.

    Raises:
        InputError: the file is damaged or of a kind that is not supported, or there is no such model on disk.
    """
    file = Path(expand_path(name))
    part, fits = _fitting(file, model, open_ip_adapter)
    layout = part and part.layout
    known = isinstance(layout, IPAdapterLayout)
    return {
        "path": str(file),
        "kind": None if not known else "plain" if layout.resampler is None else "plus",
        "tokens": layout.tokens if known else None,
        "image_channels": layout.image_dim if known else None,
        **_sizes(file),
        "models": fits,
    }


def is_upscaler(name: str) -> bool:
    """Whether a name is a file without any network of a model; such are those that enlarge images."""
    return _is_file_of(Path(expand_path(name)), lambda tensors: not sections(tensors))


def describe_upscaler(name: str) -> dict[str, Any]:
    """Return the architecture of a network that enlarges images, its factor and its channels.

    Raises:
        InputError: the file is damaged or no such network, or spandrel, which knows them, is not installed.
    """
    file = identify_network(expand_path(name))
    tensors = read_header(Path(file.path)).tensors
    try:
        network = load_network(file, torch.device("cpu"))
    except InputError as error:
        what = other_model_kind(tensors) or f"it contains {first_few(tensors) or 'nothing'}"
        why = str(error).removeprefix(f"{named(file.path)}: ")
        raise InputError(f"{named(file.path)}: no network of SDXL's family; {what}; {why}") from None
    return {
        "path": file.path, "architecture": network.architecture, "scale": network.scale,
        "channels": network.channels, **_sizes(Path(file.path)),
    }  # fmt: skip


def _few_steps(found: Recognised | None) -> dict[str, Any] | None:
    """Describe what a few-step file was made for."""
    return found and {"kind": found.kind.name, "settings": found.settings, "source": found.kind.source}


def _fitting(
    file: Path, model: str | None, describe: Callable[[Path, UNetLayout], Checkpoint]
) -> tuple[Part | None, dict[str, str | None]]:
    """Return a network as it is for one of the models that it fits, and why it does not fit others."""
    layouts = dict(NAMED) if model is None else {model: Model.find(model, offline=True).layout.unet}
    fits: dict[str, str | None] = {}
    part: Part | None = None
    for each, unet in layouts.items():
        try:
            (part,) = describe(file, unet).parts.values()
            fits[each] = None
        except MisfitError as error:
            fits[each] = str(error).removeprefix(f"{file}: ")
    return part, fits


def _sizes(file: Path) -> dict[str, Any]:
    header = read_header(file).tensors
    return {
        "parameters": sum(prod(shape) for _, shape in header.values()),
        "bytes": file.stat().st_size,
        "dtypes": [*_counts(number for number, _ in header.values())],
    }


def _like(layout: Layout) -> str | None:
    """Name the UNet whose encoder a ControlNet's is a copy of, as to its blocks."""
    if not isinstance(layout, ControlNetLayout):
        return None
    copies = {name: encoder_of(unet) for name, unet in UNETS.items()}
    blocks = [(each.down, layout.encoder.mid) for each in layout.encoder.levels]
    same = (n for n, each in copies.items() if [(level.down, each.mid) for level in each.levels] == blocks)
    return next(same, None)


def _fit(adapter: AdapterFile, layout: ModelLayout) -> dict[str, Any]:
    try:
        found = match(adapter, layout)
        return {
            "matched": found.matched_keys, "through": found.through, "carried": carried_share(found),
            "unmatched": _counts(found.unmatched.values()), "reasons": dict(found.unmatched),
        }  # fmt: skip
    except InputError as error:
        return {"error": str(error).removeprefix(f"{adapter.path}: ")}


def _counts(values: Iterable[object]) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def _parts(adapter: AdapterFile) -> dict[str, int]:
    """Count the modules for each network, by SDXL's names."""
    table = dictionary(model_layout("sdxl"))
    found = (table[name][0].part if name in table else "unknown" for name in adapter.modules)
    return _counts(found)


def _shown_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Choose what is worth showing, as short printable lines; anybody may have written it."""
    return {
        name: shown(metadata[key]).strip("'\"")
        for key, name in _METADATA.items()
        if metadata.get(key, "None") not in ("", "None")
    }


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """Return the words that the adapter was trained with: those given, or the most frequent tags."""
    given = metadata.get("modelspec.trigger_phrase") or metadata.get("ss_trigger_words")
    if given:
        return [shown(given).strip("'\"")]
    try:
        tables = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: Counter[str] = Counter()
        for table in tables.values():
            counts.update({tag.strip(): int(count) for tag, count in table.items()})
    except (AttributeError, RecursionError, TypeError, ValueError):
        return []
    return [shown(tag, 40).strip("'\"") for tag, _ in counts.most_common(_MOST_WORDS)]


def _default_settings(model: Model) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the model's default settings, or None and what is wrong with the model."""
    try:
        info, _ = model.info, model.tokenizers
        defaults = {"seed": 0, **info.defaults}
        settings = resolve_settings("any", family=info.family, model_defaults=defaults, preset=None)
    except InputError as error:
        return None, [str(error)]
    return {name: value for name, value in asdict(settings).items() if name not in ("prompt", "seed")}, []
