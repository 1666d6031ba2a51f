"""Checkpoints: everything that a step changes, so that a resumed run is bitwise identical."""

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssd1b.errors import ConflictError, InputError
from ssd1b.files import check_regular, disk_error, named, reason
from ssd1b.saving import remove_unfinished, replacing
from ssd1b.training.digests import digest_of_tensors
from ssd1b.training.processes import Processes, full_tensor
from ssd1b.training.settings import LoopSettings
from ssd1b.training.task import Learner
from ssd1b.weights.files import write_tensors

FOLDER = "checkpoints"
"""Name of the folder in a run's folder."""


def save(
    folder: Path,
    step: int,
    settings: LoopSettings,
    learners: Mapping[str, Learner[Any]],
    processes: Processes,
) -> None:
    """Write a checkpoint; every process must call this, and waits until the first one has written.

    Raises:
        InputError: the disk refused; earlier checkpoints are unchanged.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    memory = set()
    for name, tensor in named_tensors(learners).items():
        full = full_tensor(tensor.detach())
        if processes.first:
            full = full.cpu()
            # The file format cannot express tensors that share memory, so only these are copied.
            tensors[name] = full.clone() if full.untyped_storage().data_ptr() in memory else full
            memory.add(full.untyped_storage().data_ptr())
    if processes.first:
        all_settings = {name: asdict(each.settings) for name, each in learners.items()}
        metadata = {"step": str(step), "settings": json.dumps(all_settings)}
    processes.decide(lambda: _write(folder, step, settings.steps - settings.decay_steps, tensors, metadata))


def restore(path: Path, learners: Mapping[str, Learner[Any]]) -> int:
    """Fill the learners from a checkpoint that ``newest`` found; return the number of finished steps.

    Raises:
        InputError: it is from other models, or from another optimizer.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        before = {name: _method(each) for name, each in json.loads(metadata["settings"]).items()}
        for name, learner in learners.items():
            method = _method(asdict(learner.settings))
            if before.get(name) != method:
                other = before.get(name, f"no {name}")
                raise ConflictError(f"{named(path)} is from a run with {other}, not {method}")
            keys = [key for key in file.keys() if key.startswith(f"{name}.")]
            try:
                learner.load({key.removeprefix(f"{name}."): file.get_tensor(key) for key in keys})
            except InputError as error:
                raise ConflictError(f"{path} is from another model: {error}") from error
        return int(metadata["step"])


def named_tensors(learners: Mapping[str, Learner[Any]]) -> dict[str, Tensor]:
    """Return everything that a step changes, by names that begin with the learner's."""
    return {
        f"{name}.{key}": tensor
        for name, learner in learners.items()
        for key, tensor in learner.state().items()
    }


def has_checkpoints(out: Path) -> bool:
    """Return whether a run's folder holds checkpoints, valid or not."""
    folder = out / FOLDER
    return folder.is_dir() and bool(_all(folder))


def newest(folder: Path, *, tidy: bool = False) -> Path | None:
    """Return the newest checkpoint whose digest is right, or None if there are no checkpoints.

    Args:
        folder: of the checkpoints.
        tidy: rename newer checkpoints that cannot be used, with a warning.

    Raises:
        InputError: there are checkpoints, but none can be used.
    """
    defects = {}
    for path in reversed(_all(folder)):
        defect = _defect(path)
        if defect is None:
            for each in defects if tidy else ():
                aside = _set_aside(each)
                warnings.warn(
                    f"checkpoint {each.name} cannot be used: {defects[each]}; it is now called "
                    f"{aside.name}, and the run resumes from {path.name}",
                    stacklevel=2,
                )
            return path
        defects[path] = defect
    if not defects:
        return None
    what = "; ".join(f"{path.name}: {defect}" for path, defect in defects.items())
    raise InputError(f"no checkpoint in {named(folder)} can be used ({what}): name another folder for --out")


def clear(out: Path) -> None:
    """Make a run's folders, and remove what a killed run was writing there.

    Raises:
        InputError: the disk refused, or something else has a folder's name.
    """
    try:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        for folder in (out, out / FOLDER):
            remove_unfinished(folder)
    except OSError as error:
        raise disk_error(f"cannot write {named(out / FOLDER)}", error) from error


def _method(settings: Mapping[str, Any]) -> str:
    """Describe what a learner stores in a checkpoint in addition to its weights."""
    muon = " and Muon" if settings["muon_rate"] is not None else ""
    return f"optimizer {settings['optimizer']}{muon}{', averaged' if settings['ema_decay'] else ''}"


def _defect(path: Path) -> str | None:
    """Say why a checkpoint cannot be used; None if it can."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "digest" not in metadata or not metadata.get("step", "").isdecimal():
                return "it has no step or no digest, and may be from an older version or another program"
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            intact = metadata["digest"] == _digest(metadata, tensors)
            return None if intact else "it is damaged: its content has changed since it was written"
    except InputError as error:
        return str(error)
    except (SafetensorError, OSError) as error:
        return f"it is damaged or cannot be read ({reason(error).removeprefix('Error while deserializing ')})"


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of the tensors, the step and the settings."""
    return digest_of_tensors(tensors, f"{metadata['step']} {metadata.get('settings')}").hex()


def _set_aside(path: Path) -> Path:
    """Rename a file that cannot be used; it is not removed, since it may be the user's."""
    aside = path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        aside = aside.with_name(f"{aside.name}-again")
    path.rename(aside)
    return aside


def _write(
    folder: Path, step: int, before_decay: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a checkpoint under a temporary name, rename it, and only then remove older ones."""
    path = folder / _name(step)
    try:
        with replacing(path) as aside:
            write_tensors(aside, tensors, {**metadata, "digest": _digest(metadata, tensors)})
    except InputError as error:
        earlier = [each for each in _all(folder) if each != path]
        left = f"the run can resume from {earlier[-1].name}" if earlier else "there is no earlier checkpoint"
        raise type(error)(f"{error}; {left}") from error
    # Checkpoints of later steps are from a longer run.
    for old in [each for each in _all(folder) if each <= path][:-2]:
        if old.name != _name(before_decay) and old.is_file() and not old.is_symlink():
            old.unlink()


def _name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}\.safetensors", path.name))
