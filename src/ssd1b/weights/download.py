"""Downloads from the Hugging Face hub: only the needed files, all of one commit, verified.

The only module that uses the network, through ``huggingface_hub``, which honours HF_HOME, HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE. Weights are downloaded as safetensors, never as pickles, and no code ever is.
"""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ssd1b.errors import InputError, NotFoundError, OutOfSpaceError, UnavailableError, shown
from ssd1b.files import disk_error

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

COMMIT = re.compile(r"[0-9a-f]{40}")
"""Hash of a commit, which also names a snapshot's folder in the cache."""

_FOLDERS = (
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
)  # fmt: skip
"""Folders of a model that are downloaded; many repositories also have other formats and autoencoders."""

_SMALL = 2**20
"""Size in bytes below which a file's progress is not shown."""


def wanted_files(files: Iterable[str], *, half: bool) -> list[str]:
    """Choose the files to download from a repository: one set of safetensors with their JSON and text files.

    Args:
        files: every path in the repository.
        half: prefer fp16 files.

    Raises:
        InputError: the repository has no model, or several.
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
    """Choose configuration, texts, and the weights in one precision, in a single file or in shards."""
    weights = [file for file in files if file.endswith(".safetensors")]
    fp16 = [file for file in weights if ".fp16" in file]
    full = [file for file in weights if ".fp16" not in file]
    chosen = (fp16 or full) if half else (full or fp16)
    texts = [file for file in files if file.endswith((".json", ".txt"))]
    return [*texts, *(file for file in chosen if _WEIGHTS.fullmatch(file.rpartition("/")[2]))]


_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors")
"""Standard names of weight files, as opposed to ``*.non_ema.safetensors`` and others."""


def cache_folder() -> Path:
    """Return the hub's cache, whose layout huggingface_hub documents."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(repository: str) -> Path:
    """Return the folder of a repository in the cache."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def download(repository: str, revision: str, *, half: bool, token: bool) -> Path | str:
    """Download the needed files of a repository that are not in the cache yet.

    All files are from the commit that ``revision`` refers to at the start, even if it moves meanwhile. Size
    and digest of each file must be those listed on the hub; damaged files are removed.

    Args:
        repository: "owner/name".
        revision: a branch, tag or commit.
        half: prefer fp16 files.
        token: send the user's token.

    Returns:
        The snapshot's folder, whose name is the commit; or the reason why the hub could not be used.

    Raises:
        InputError: the hub refused the request, a file arrived damaged, or the disk is full.
    """
    from huggingface_hub import errors  # half a second to import

    # A broken connection raises an error of the HTTP client in use, whose base class the library's own share.
    network_errors = cast("tuple[type[Exception], ...]", (OSError, *errors.HfHubHTTPError.__bases__))
    send = None if token else False  # None: the token of HF_TOKEN or of the login
    try:
        listed = _listing(repository, revision, send)
        if isinstance(listed, str):
            return listed
        files = {each.rfilename: each for each in listed.siblings or ()}
        wanted = [files[name] for name in wanted_files(files, half=half)]
        folder = repository_folder(repository) / "snapshots" / str(listed.sha)
        missing = [each for each in wanted if not _is_complete(folder / each.rfilename, each)]
        _check_space(repository_folder(repository), missing)
        for each in missing:
            _fetch(repository, each, folder, send)
        _write_ref(repository_folder(repository) / "refs" / revision, folder.name)
        return folder
    except ValueError as error:  # no model in it, an invalid name, a damaged file
        kind = type(error) if isinstance(error, InputError) else InputError
        raise kind(f"{repository}: {_first_line(error)}") from error
    except network_errors as error:
        # The library hides the cause behind "an error happened, and the file is not in the cache".
        hidden = isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception)
        return _explain(cast(Exception, error.__cause__) if hidden else error, repository, revision)


def _listing(repository: str, revision: str, send: bool | None) -> "ModelInfo | str":
    """Request a repository's commit and files with sizes and digests, or return why that failed."""
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
        if isinstance(error, (OSError, errors.HFValidationError)):  # a refusal, an invalid name
            raise
        return _strange_answer()
    return listed if COMMIT.fullmatch(listed.sha or "") else _strange_answer()


def _strange_answer() -> str:
    from huggingface_hub import constants

    return (
        f"{shown(constants.ENDPOINT)} does not answer like the hub: check HF_ENDPOINT, and whether the "
        "network requires a login"
    )


def _check_space(folder: Path, files: "Sequence[RepoSibling]") -> None:
    """Check before the download that the disk has enough space."""
    needed = sum(each.size or 0 for each in files if not (folder / "blobs" / (_digest(each) or "-")).exists())
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OutOfSpaceError(
            f"the download needs {needed / 1e9:,.1f} GB, and {cache_folder()} has {free / 1e9:,.1f} GB free: "
            "free some, or set HF_HOME to a folder on a larger disk"
        )


def _fetch(repository: str, file: "RepoSibling", folder: Path, send: bool | None) -> None:
    """Download one file of the commit after which ``folder`` is named."""
    import huggingface_hub

    path = folder / file.rfilename
    with _quiet((file.size or 0) < _SMALL):
        huggingface_hub.hf_hub_download(
            repository,
            file.rfilename,
            revision=folder.name,
            token=send,
            force_download=path.exists(),  # an incomplete file: damaged on the disk
        )
    if not path.exists():
        raise UnavailableError(f"{file.rfilename}: the hub answered for another commit than {folder.name}")
    if not _is_complete(path, file) or not _has_listed_digest(path, file):
        _discard(path)
        raise UnavailableError(
            f"{file.rfilename} arrived damaged (its digest differs from the listed one) and was removed: "
            "try again, over another connection if it keeps happening"
        )


def _is_complete(path: Path, file: "RepoSibling") -> bool:
    return path.is_file() and file.size in (None, path.stat().st_size)


def _has_listed_digest(path: Path, file: "RepoSibling") -> bool:
    """Whether a file has the digest listed on the hub: SHA-256, or git's for a small file."""
    digest = _digest(file)
    if digest is None:
        return True
    name, header = ("sha256", b"") if file.lfs else ("sha1", b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as content:
        found = hashlib.file_digest(content, lambda: hashlib.new(name, header, usedforsecurity=False))
    return found.hexdigest() == digest


def _digest(file: "RepoSibling") -> str | None:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _discard(path: Path) -> None:
    """Remove a downloaded file: the link in the snapshot, and its target."""
    blob = path.parent / path.readlink() if path.is_symlink() else None
    path.unlink()
    if blob is not None:
        blob.unlink(missing_ok=True)


def _write_ref(reference: Path, commit: str) -> None:
    """Record the commit of a branch or tag whose files are complete, for use offline."""
    if COMMIT.fullmatch(reference.name):
        return
    temporary = reference.with_name(f"{reference.name}.{uuid.uuid4().hex[:8]}.incomplete")
    with suppress(OSError):  # the cache may be read-only
        if reference.is_file() and reference.read_text() == commit:
            return
        reference.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(commit)
        os.replace(temporary, reference)


@contextmanager
def _quiet(quiet: bool) -> Generator[None, None, None]:
    """Disable progress bars in this context, unless the user configured them."""
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


def _explain(error: Exception, repository: str, revision: str) -> str:
    """Return the reason why the hub could not be used; complete files in the cache may suffice.

    Raises:
        InputError: the hub refused the request, or the disk failed.
    """
    from huggingface_hub import constants, errors

    kind: type[InputError] = NotFoundError
    match error:
        case errors.OfflineModeIsEnabled():
            return "the hub was not used (HF_HUB_OFFLINE)"
        case errors.GatedRepoError():
            terms = f"{constants.ENDPOINT}/{repository}"
            kind = UnavailableError
            problem = f"access is restricted: accept its terms at {terms}, set HF_TOKEN"
        case errors.RevisionNotFoundError():
            problem = f"no revision {revision!r} on the hub"
        case errors.RepositoryNotFoundError():
            problem = "not on the hub, or private and HF_TOKEN gives no access"
        case errors.FileMetadataError():
            return _strange_answer()
        case errors.HfHubHTTPError():
            return _explain_status(error, repository)
        case OSError(errno=int()) if not isinstance(error, (ConnectionError, TimeoutError)):
            advice = "; free some space or set HF_HOME to another folder; complete files are kept"
            raise disk_error(f"cannot write to the cache {cache_folder()}", error, advice) from error
        case _:
            line = _first_line(error).rstrip(".") or type(error).__name__
            return f"the hub could not be used: {line}; try again, complete files are kept"
    raise kind(f"{repository}: {problem}") from error


def _explain_status(error: Any, repository: str) -> str:
    """Explain an HTTP status for which the library has no class; raises as ``_explain``."""
    status = error.response.status_code
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        when = f"in {int(wait)} seconds" if wait.isdigit() else "later"
        return f"the hub limits the rate of requests (429): try again {when}, or set HF_TOKEN"
    if status >= 500:
        return f"the hub has a fault ({status}): try again later"
    if status == 404:
        return _strange_answer()
    if status == 401:
        problem = "the hub refuses the token: set HF_TOKEN to a valid one, or unset it"
    else:
        problem = f"the hub refuses access ({status}): {_first_line(error)}"
    raise UnavailableError(f"{repository}: {problem}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
