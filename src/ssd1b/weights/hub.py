"""Lookup of models by name: built-in models, aliases, the Hugging Face hub and its cache."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ssd1b.errors import InputError, NotFoundError, UnavailableError, unknown
from ssd1b.files import check_link, expand_path
from ssd1b.weights.download import COMMIT, cache_folder, download, repository_folder
from ssd1b.weights.files import read_json
from ssd1b.weights.keymap import PARTS
from ssd1b.weights.vocabulary import DATA

BUILT_IN: dict[str, Path] = {
    **{name: DATA / name for name in ("mini-ssd-1b", "mini-sdxl")},
    "mini-ssd-1b-turbo": DATA / "mini-ssd-1b",
}
"""Models included in the package."""

LORAS: dict[str, Path] = {"mini-ssd-1b-turbo": DATA / "mini-ssd-1b-turbo.safetensors"}
"""LoRAs of those included models that have another one's files; merged when they are loaded."""

ALIASES: dict[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "ssd-1b": "segmind/SSD-1B",
    "vega": "segmind/Segmind-Vega",
}
"""Short names for published models."""

_FILES = (".safetensors", ".ckpt", ".pt", ".bin", ".gguf")
"""Suffixes that show that a name is meant as a path."""

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WEIGHTS = re.compile(r"(.*?)(?:-\d{1,9}-of-(\d{1,9}))?\.safetensors")
_REVISION = re.compile(r"\w[\w./-]*")


class Location(NamedTuple):
    """Where a model is on disk.

    Attributes:
        path: a folder or file for ``opening.open_checkpoint``.
        commit: the commit on the hub; None for a model that is not from the hub.
    """

    path: Path
    commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableModel:
    """A model that can be used by name.

    Attributes:
        name: the name.
        source: "built-in", the hub id of an alias, or "cache".
        ready: usable without the network.
    """

    name: str
    source: str
    ready: bool


def resolve(
    model: str, *, offline: bool = False, half: bool = False, token: bool = True, paths: bool = True
) -> Location:
    """Find a model, downloading it if necessary.

    Args:
        model: a path, a built-in name, an alias or a hub id; the last two optionally with ``@revision``. A
            folder with the same name as a model, but without a model in it (a sweep, say), is ignored.
        offline: never use the network.
        half: the model will run in 16 bits, so prefer the smaller fp16 files.
        token: send the user's token to the hub. False for a repository named in an untrusted file.
        paths: allow paths. False for a name from an untrusted file: the file system is not searched.

    Raises:
        InputError: there is no such model or no access to it, or no network and no copy in the cache.
    """
    if paths and (path := _local(model)):
        return Location(path)
    if model in BUILT_IN:
        return Location(BUILT_IN[model])
    name, _, revision = model.partition("@")
    repository = ALIASES.get(name.lower(), name)
    if Path(model).suffix in _FILES or name.count("/") > 1 or model.startswith((".", "~")):
        raise NotFoundError(f"{model}: no such file or folder")
    if not _REPOSITORY.fullmatch(repository):
        raise unknown("model", model, [*BUILT_IN, *ALIASES], NotFoundError)
    if not _is_revision(revision):
        raise InputError(f"{model}: {revision!r} is not a branch, tag or commit")
    folder = _snapshot(repository, revision or "main", offline=offline, half=half, token=token)
    path = folder if _holds_model(folder) else next(folder.glob("*.safetensors"))
    return Location(path, commit=folder.name)


def known_source(model: str) -> str | None:
    """Return why a model named in an untrusted file may be used without asking the user.

    Paths are not allowed, as in ``resolve`` with ``paths=False``.

    Returns:
        "built-in"; "published" for an alias or its repository, which may be downloaded; "cached" for another
        hub id whose files are in the cache; None for a name that must not be used.
    """
    name, _, revision = model.partition("@")
    repository = ALIASES.get(name.lower(), name)
    if model in BUILT_IN:
        return "built-in"
    if not _REPOSITORY.fullmatch(repository) or not _is_revision(revision):
        return None
    # Anyone can propose changes under refs/.
    if repository in ALIASES.values() and not revision.startswith("refs/"):
        return "published"
    folder = _cached_snapshot(repository, revision or "main")
    return "cached" if folder is not None and not _lacking(folder) else None


def available_models() -> list[AvailableModel]:
    """List all models that can be used by name: built in, with an alias, or in the hub's cache."""
    cached = set(_cached_models())
    built_in = [
        AvailableModel(name=name, source="built-in", ready=path.exists())
        for name, path in sorted(BUILT_IN.items())
    ]
    aliases = [
        AvailableModel(name=name, source=repository, ready=repository in cached)
        for name, repository in sorted(ALIASES.items())
    ]
    others = [
        AvailableModel(name=name, source="cache", ready=True)
        for name in sorted(cached - set(ALIASES.values()))
    ]
    return built_in + aliases + others


def _local(model: str) -> Path | None:
    """Return a name as a path if it exists, except for a folder without a model under a known name."""
    if not model:
        return None
    path = Path(expand_path(model))
    is_known = model in BUILT_IN or model.lower() in ALIASES
    if not path.exists():
        if not is_known:
            check_link(path)
        return None
    return None if is_known and path.is_dir() and not _holds_model(path) else path


def _is_revision(revision: str) -> bool:
    """Whether a text is valid as a branch, tag or commit; empty for the main branch."""
    return not revision or (".." not in revision and _REVISION.fullmatch(revision) is not None)


def _snapshot(repository: str, revision: str, *, offline: bool, half: bool, token: bool) -> Path:
    """Find or download the needed files of a repository, in a folder named after the commit."""
    reason = "the hub was not used (offline)"
    if not offline:
        fetched = download(repository, revision, half=half, token=token)
        if isinstance(fetched, Path):
            return fetched
        reason = fetched
    folder = _cached_snapshot(repository, revision)
    if folder is None:
        raise UnavailableError(f"{repository}@{revision}: not in the cache, and {reason}")
    lacking = _lacking(folder)
    if lacking:
        raise UnavailableError(f"{repository}@{revision}: the cache lacks {', '.join(lacking)}, and {reason}")
    return folder


def _cached_snapshot(repository: str, revision: str) -> Path | None:
    """Find a snapshot in the cache by branch, tag or commit, in the layout that huggingface_hub documents."""
    repository_path = repository_folder(repository)
    reference = repository_path / "refs" / revision
    commit = reference.read_text(errors="replace").strip() if reference.is_file() else revision
    folder = repository_path / "snapshots" / commit
    return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


def _lacking(folder: Path) -> list[str]:
    """List the incomplete networks of a snapshot whose download was interrupted."""
    if not (folder / "model_index.json").exists():
        return [] if any(folder.glob("*.safetensors")) else ["the weights"]
    return [part for part in PARTS if not _is_whole(folder / part)]


def _is_whole(folder: Path) -> bool:
    """Whether a network has its configuration, and its weights in one file or in a complete set of shards."""
    names = [_WEIGHTS.fullmatch(path.name) for path in folder.glob("*.safetensors")]
    sets = Counter((name[1], int(name[2] or 1)) for name in names if name)
    return (folder / "config.json").exists() and any(count == size for (_, size), count in sets.items())


def _cached_models() -> list[str]:
    """List the hub ids of complete SDXL models in the cache; none if it is not readable."""
    try:
        indices = sorted(cache_folder().glob("models--*/snapshots/*/model_index.json"))
        complete = [index for index in indices if _is_sdxl(index) and not _lacking(index.parent)]
    except PermissionError:
        return []
    return [index.parents[2].name.removeprefix("models--").replace("--", "/", 1) for index in complete]


def _is_sdxl(index: Path) -> bool:
    try:
        return str(read_json(index).get("_class_name")).startswith("StableDiffusionXL")
    except InputError:
        return False  # damaged


def _holds_model(folder: Path) -> bool:
    return (folder / "model_index.json").exists() or (folder / "config.json").exists()
