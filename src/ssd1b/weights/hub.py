"""Names of models to places on disk: built-in models, short aliases, the Hugging Face hub and its cache.

The only module that talks to the network, through ``huggingface_hub``, which honours HF_HOME, HF_HUB_OFFLINE
and HF_TOKEN. Weights are downloaded as safetensors, never as pickles, and no code ever is.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ssd1b.errors import InputError, unknown
from ssd1b.weights.files import read_json
from ssd1b.weights.keymap import PARTS
from ssd1b.weights.vocabulary import DATA

BUILT_IN: dict[str, Path] = {name: DATA / name for name in ("mini-ssd-1b", "mini-sdxl")}
"""Models that come with the package."""

ALIASES: dict[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "ssd-1b": "segmind/SSD-1B",
    "vega": "segmind/Segmind-Vega",
}
"""Short names for published models."""

_FOLDERS = (
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
)  # fmt: skip
"""What is downloaded of a model's folder; many repositories hold other formats and autoencoders beside."""

_FILES = (".safetensors", ".ckpt", ".pt", ".bin", ".gguf")
"""Endings that no repository has and that say: this was meant as a path."""

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REVISION = re.compile(r"\w[\w./-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Where a model is, and what it is called in recipes.

    Attributes:
        path: a folder or file for ``loading.open_checkpoint``.
        name: as the user may give it again.
        commit: the hub's commit that was used; None for anything that is no hub model.
    """

    path: Path
    name: str
    commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A model that can be used.

    Attributes:
        name: what to call it.
        source: "built-in", the hub id behind an alias, or "cache".
        ready: usable without the network.
    """

    name: str
    source: str
    ready: bool


def resolve(model: str, *, offline: bool = False, half: bool = False, token: bool = True) -> Resolved:
    """Find a model, downloading it if it must be.

    Args:
        model: a path, a built-in name, an alias or a hub id; the last two with ``@revision`` if wanted. A
            folder without a model in it, as a sweep may be called, does not stand in the way of a name.
        offline: use what is on disk only.
        half: the model will run in 16 bits, so that the smaller fp16 files do where there are any.
        token: send the user's token to the hub. False for a repository that a file names and not the user.

    Raises:
        InputError: no such model, no access to it, or no network and no copy in the cache.
    """
    path = Path(model).expanduser()
    named = model in BUILT_IN or model.lower() in ALIASES
    if model and path.exists() and not (named and path.is_dir() and not _holds_model(path)):
        return Resolved(path=path, name=model)
    if model in BUILT_IN:
        return Resolved(path=BUILT_IN[model], name=model)
    name, _, revision = model.partition("@")
    repository = ALIASES.get(name.lower(), name)
    if path.suffix in _FILES or name.count("/") > 1 or model.startswith((".", "~")):
        raise InputError(f"{model}: no such file or folder")
    if not _REPOSITORY.fullmatch(repository):
        raise unknown("model", model, [*BUILT_IN, *ALIASES])
    if not _is_revision(revision):
        raise InputError(f"{model}: {revision!r} is no branch, tag or commit")
    folder = _snapshot(repository, revision or "main", offline=offline, half=half, token=token)
    return Resolved(path=_checkpoint_in(folder), name=model, commit=folder.name)


def is_known(model: str) -> bool:
    """Whether a name that comes from a file may be used without asking the user.

    True for built-in models, aliases, and hub ids whose files are in the cache. False for paths, and for a
    name that is also a file or folder here: ``resolve`` would take it for that.
    """
    name, _, revision = model.partition("@")
    if model in BUILT_IN or name.lower() in ALIASES:
        return True
    if Path(model).exists() or not _REPOSITORY.fullmatch(name) or not _is_revision(revision):
        return False
    folder = _cached_snapshot(name, revision or "main")
    return folder is not None and not _lacking(folder)


def models() -> list[Listed]:
    """Every model that can be named: built in, aliased, or in the hub's cache; nothing is downloaded."""
    cached = set(_cached_models())
    built_in = [
        Listed(name=name, source="built-in", ready=path.exists()) for name, path in sorted(BUILT_IN.items())
    ]
    aliases = [
        Listed(name=name, source=repository, ready=repository in cached)
        for name, repository in sorted(ALIASES.items())
    ]
    others = [
        Listed(name=name, source="cache", ready=True) for name in sorted(cached - set(ALIASES.values()))
    ]
    return built_in + aliases + others


def _is_revision(revision: str) -> bool:
    """Whether this can name a branch, tag or commit; nothing at all stands for the main branch."""
    return not revision or (".." not in revision and _REVISION.fullmatch(revision) is not None)


def wanted_files(files: Iterable[str], *, half: bool) -> list[str]:
    """Choose what to download of a repository: one set of safetensors, and the JSON and text files beside.

    Args:
        files: every path in the repository.
        half: prefer fp16 files.

    Raises:
        InputError: no model in it, or several and nothing to choose by.
    """
    files = sorted(files)
    if "model_index.json" in files:
        inside = [file for file in files if file.partition("/")[0] in _FOLDERS and file.count("/") == 1]
        chosen = ["model_index.json", *(name for name in ("ssd1b.json",) if name in files)]
        for folder in _FOLDERS:
            chosen += _component_files([file for file in inside if file.startswith(f"{folder}/")], half)
        return chosen
    top = [file for file in files if "/" not in file]
    if "config.json" in top:
        return _component_files(top, half)
    checkpoints = [file for file in top if file.endswith(".safetensors")]
    if len(checkpoints) != 1:
        found = f"{len(checkpoints)} single files" if checkpoints else "no safetensors"
        raise InputError(f"no model_index.json but {found}; download the one you want and give its path")
    return checkpoints


def _component_files(files: Sequence[str], half: bool) -> list[str]:
    """Configuration and texts, and the weights in one precision: fp16 or the full one, whole or in shards."""
    weights = [file for file in files if file.endswith(".safetensors")]
    fp16 = [file for file in weights if ".fp16" in file]
    full = [file for file in weights if ".fp16" not in file]
    chosen = (fp16 or full) if half else (full or fp16)
    texts = [file for file in files if file.endswith((".json", ".txt"))]
    return [*texts, *_standard(chosen)]


def _standard(weights: Sequence[str]) -> list[str]:
    """Leave out what lies beside the weights under other names, such as ``*.non_ema.safetensors``."""
    stem = re.compile(r"(diffusion_pytorch_)?model(\.fp16)?(-\d+-of-\d+)?\.safetensors")
    return [file for file in weights if stem.fullmatch(file.rpartition("/")[2])]


def _snapshot(repository: str, revision: str, *, offline: bool, half: bool, token: bool) -> Path:
    """The folder of a repository's snapshot with its wanted files; the folder's name is the commit."""
    reason = "the hub was not asked (offline)"
    if not offline:
        fetched = _download(repository, revision, half, token)
        if isinstance(fetched, Path):
            return fetched
        reason = fetched
    folder = _cached_snapshot(repository, revision)
    if folder is None:
        raise InputError(f"{repository}@{revision}: not in the cache, and {reason}")
    lacking = _lacking(folder)
    if lacking:
        raise InputError(f"{repository}@{revision}: the cache lacks {', '.join(lacking)}, and {reason}")
    return folder


def _download(repository: str, revision: str, half: bool, token: bool) -> Path | str:
    """Fetch what is wanted, or say why the network is of no use.

    Raises:
        InputError: the hub answered, and the answer is no.
    """
    import huggingface_hub  # half a second to import
    from huggingface_hub import errors

    # A broken connection raises an error of the HTTP client, whichever it is; the library's own share its
    # base class.
    network_errors = cast("tuple[type[Exception], ...]", (OSError, *errors.HfHubHTTPError.__bases__))
    send = None if token else False  # None: the token of HF_TOKEN or of the login
    try:
        listed = huggingface_hub.HfApi().model_info(repository, revision=revision, token=send)
        files = wanted_files((file.rfilename for file in listed.siblings or ()), half=half)
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=listed.sha, allow_patterns=files, token=send
            )
        )
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{repository}"
        raise InputError(
            f"{repository}: access is restricted: accept its terms at {page}, set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repository}: no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{repository}: not on the hub, or private and HF_TOKEN gives no access") from error
    except ValueError as error:  # no model in it, or no valid name
        raise InputError(f"{repository}: {_first_line(error)}") from error
    except errors.OfflineModeIsEnabled:
        return "the hub was not asked (HF_HUB_OFFLINE)"
    except network_errors as error:
        return f"the hub could not be used: {_first_line(error) or type(error).__name__}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached_snapshot(repository: str, revision: str) -> Path | None:
    """A snapshot in the cache, by branch, tag or commit, in the layout that huggingface_hub documents."""
    storage = _cache() / f"models--{repository.replace('/', '--')}"
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = storage / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def _lacking(folder: Path) -> list[str]:
    """Networks of a snapshot whose weights are not there, after a download that was cut short."""
    if not (folder / "model_index.json").exists():
        return [] if any(folder.glob("*.safetensors")) else ["the weights"]
    return [part for part in PARTS if not any((folder / part).glob("*.safetensors"))]


def _cached_models() -> list[str]:
    """Hub ids of the cached models of SDXL's kind, whole ones only."""
    indices = sorted(_cache().glob("models--*/snapshots/*/model_index.json"))
    whole = [index for index in indices if _is_of_the_family(index) and not _lacking(index.parent)]
    return [index.parents[2].name.removeprefix("models--").replace("--", "/", 1) for index in whole]


def _is_of_the_family(index: Path) -> bool:
    try:
        return str(read_json(index).get("_class_name")).startswith("StableDiffusionXL")
    except InputError:
        return False  # somebody else's damaged download


def _checkpoint_in(folder: Path) -> Path:
    """What ``loading.open_checkpoint`` wants of a snapshot: a model's folder, or the only file in it."""
    return folder if _holds_model(folder) else next(folder.glob("*.safetensors"))


def _holds_model(folder: Path) -> bool:
    return (folder / "model_index.json").exists() or (folder / "config.json").exists()
