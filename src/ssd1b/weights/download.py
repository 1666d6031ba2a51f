"""Downloads from the Hugging Face hub: what is wanted of a model, at one commit, checked when it is there.

The only module that talks to the network, through ``huggingface_hub``, which honours HF_HOME, HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE. Weights are downloaded as safetensors, never as pickles, and no code ever is.
"""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ssd1b.errors import InputError, NotFoundError, OutOfSpaceError, UnavailableError, shown
from ssd1b.files import disk_error

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

COMMIT = re.compile(r"[0-9a-f]{40}")
"""The name of a commit, and of a snapshot's folder in the cache."""

_FOLDERS = (
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
)  # fmt: skip
"""What is downloaded of a model's folder; many repositories hold other formats and autoencoders beside."""

_SMALL = 2**20
"""Bytes of a file for which no progress is shown."""


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
    stem = re.compile(r"(diffusion_pytorch_)?model(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors")
    return [file for file in weights if stem.fullmatch(file.rpartition("/")[2])]


def cache_folder() -> Path:
    """The hub's cache, in the layout that huggingface_hub documents."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(repository: str) -> Path:
    """The folder of a repository in the cache."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def download(repository: str, revision: str, *, half: bool, token: bool) -> Path | str:
    """Fetch what is wanted of a repository, file by file, and keep what is complete.

    All files are those of the commit that ``revision`` names at the start, also where it moves meanwhile. A
    file is compared with the size and digest that the hub lists; a damaged one is removed.

    Args:
        repository: "owner/name".
        revision: a branch, tag or commit.
        half: prefer fp16 files.
        token: send the user's token.

    Returns:
        The snapshot's folder, whose name is the commit; or why the hub could not be used.

    Raises:
        InputError: the hub answered, and the answer is no; what came is damaged; the disk is full.
    """
    from huggingface_hub import errors  # half a second to import

    # A broken connection raises an error of the HTTP client, whichever it is; the library's own share its
    # base class.
    network_errors = cast("tuple[type[Exception], ...]", (OSError, *errors.HfHubHTTPError.__bases__))
    send = None if token else False  # None: the token of HF_TOKEN or of the login
    try:
        listed = _listing(repository, revision, send)
        if isinstance(listed, str):
            return listed
        files = {each.rfilename: each for each in listed.siblings or ()}
        wanted = [files[name] for name in wanted_files(files, half=half)]
        folder = repository_folder(repository) / "snapshots" / str(listed.sha)
        lacking = [each for each in wanted if not _is_whole(folder / each.rfilename, each)]
        _check_space(repository_folder(repository), lacking)
        for each in lacking:
            _fetch(repository, each, folder, send)
        _remember(repository_folder(repository) / "refs" / revision, folder.name)
        return folder
    except ValueError as error:  # no model in it, no valid name, a file that arrived damaged
        kind = type(error) if isinstance(error, InputError) else InputError
        raise kind(f"{repository}: {_first_line(error)}") from error
    except network_errors as error:
        # The library hides what happened behind "an error happened, and the file is not in the cache".
        hidden = isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception)
        return _reason(cast(Exception, error.__cause__) if hidden else error, repository, revision)


def _listing(repository: str, revision: str, send: bool | None) -> "ModelInfo | str":
    """What the hub says of a repository: commit, files with sizes and digests; or why that is of no use."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        listed = huggingface_hub.HfApi().model_info(
            repository,
            revision=revision,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
            files_metadata=True,
            token=send,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, (OSError, errors.HFValidationError)):  # a refusal, a name that cannot be
            raise
        return _strange_answer()
    return listed if COMMIT.fullmatch(listed.sha or "") else _strange_answer()


def _strange_answer() -> str:
    from huggingface_hub import constants

    return (
        f"{shown(constants.ENDPOINT)} does not answer as the hub does: check HF_ENDPOINT, and whether the "
        "network asks for a login first"
    )


def _check_space(folder: Path, files: "Sequence[RepoSibling]") -> None:
    """Refuse before anything is downloaded what the disk cannot hold."""
    needed = sum(each.size or 0 for each in files if not (folder / "blobs" / (_digest(each) or "-")).exists())
    place = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OutOfSpaceError(
            f"the download needs {needed / 1e9:,.1f} GB, and {cache_folder()} has {free / 1e9:,.1f} GB free: "
            "free some, or set HF_HOME to a folder on a larger disk"
        )


def _fetch(repository: str, file: "RepoSibling", folder: Path, send: bool | None) -> None:
    """Download one file of the commit after which ``folder`` is named."""
    import huggingface_hub

    there = folder / file.rfilename
    with _quiet((file.size or 0) < _SMALL):
        huggingface_hub.hf_hub_download(
            repository,
            file.rfilename,
            revision=folder.name,
            token=send,
            force_download=there.exists(),  # and not whole: damaged on the disk
        )
    if not there.exists():
        raise UnavailableError(f"{file.rfilename}: the hub answers for another commit than {folder.name}")
    if not _is_whole(there, file) or not _is_listed(there, file):
        _discard(there)
        raise UnavailableError(
            f"{file.rfilename} arrived damaged, its digest is not the listed one, and was removed: "
            "try again, over another connection if it stays so"
        )


def _is_whole(path: Path, file: "RepoSibling") -> bool:
    return path.is_file() and file.size in (None, path.stat().st_size)


def _is_listed(path: Path, file: "RepoSibling") -> bool:
    """Whether a file has the digest that the hub lists: SHA-256, or git's of a small file."""
    digest = _digest(file)
    if digest is None:
        return True
    start = b"" if file.lfs else b"blob %d\0" % path.stat().st_size
    with path.open("rb") as content:
        found = hashlib.file_digest(content, lambda: _started("sha256" if file.lfs else "sha1", start))
    return found.hexdigest() == digest


def _started(name: str, data: bytes) -> Any:
    return hashlib.new(name, data, usedforsecurity=False)


def _digest(file: "RepoSibling") -> str | None:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _discard(path: Path) -> None:
    """Remove a file that was just downloaded: the link in the snapshot, and what it points to."""
    blob = path.parent / path.readlink() if path.is_symlink() else None
    path.unlink()
    if blob is not None:
        blob.unlink(missing_ok=True)


def _remember(reference: Path, commit: str) -> None:
    """Note which commit a branch or tag stands for, once all files of it are there, for a start offline."""
    if COMMIT.fullmatch(reference.name):
        return
    aside = reference.with_name(f"{reference.name}.{uuid.uuid4().hex[:8]}.incomplete")
    with suppress(OSError):  # a cache that can be read alone is one, too
        if reference.is_file() and reference.read_text() == commit:
            return
        reference.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(commit)
        os.replace(aside, reference)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Show no progress while this lasts, unless the user decided about it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if not quiet or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _reason(error: Exception, repository: str, revision: str) -> str:
    """Say why the hub could not be used; what is kept is used next time.

    Raises:
        InputError: the hub answered, and the answer is no; or it is the disk.
    """
    from huggingface_hub import constants, errors

    kind: type[InputError] = NotFoundError
    match error:
        case errors.OfflineModeIsEnabled():
            return "the hub was not asked (HF_HUB_OFFLINE)"
        case errors.GatedRepoError():
            terms = f"{constants.ENDPOINT}/{repository}"
            kind, said = UnavailableError, f"access is restricted: accept its terms at {terms}, set HF_TOKEN"
        case errors.RevisionNotFoundError():
            said = f"no revision {revision!r} on the hub"
        case errors.RepositoryNotFoundError():
            said = "not on the hub, or private and HF_TOKEN gives no access"
        case errors.FileMetadataError():
            return _strange_answer()
        case errors.HfHubHTTPError():
            return _status(error, repository)
        case OSError(errno=int()) if not isinstance(error, (ConnectionError, TimeoutError)):
            advice = "; make room or set HF_HOME to another folder, what is complete is kept"
            raise disk_error(f"cannot write into the cache {cache_folder()}", error, advice) from error
        case _:
            line = _first_line(error).rstrip(".") or type(error).__name__
            return f"the hub could not be used: {line}; try again, what is complete is kept"
    raise kind(f"{repository}: {said}") from error


def _status(error: Any, repository: str) -> str:
    """What a status of HTTP means, beyond those for which the library has a class."""
    status = error.response.status_code
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        when = f"in {int(wait)} seconds" if wait.isdigit() else "later"
        return f"the hub limits how often it is asked (429): try again {when}, or set HF_TOKEN"
    if status >= 500:
        return f"the hub has a fault ({status}): try again later"
    if status == 401:
        said = "the hub refuses the token: set HF_TOKEN to a valid one, or unset it"
    elif status == 404:
        return _strange_answer()
    else:
        said = f"the hub refuses access ({status}): {_first_line(error)}"
    raise UnavailableError(f"{repository}: {said}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
