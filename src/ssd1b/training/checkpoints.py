"""Everything that a step changes, in a file from which a run goes on bit by bit."""

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ssd1b.errors import InputError
from ssd1b.files import check_regular, named, reason
from ssd1b.saving import claim, remove_unfinished, replacing
from ssd1b.training.digests import digest_of_tensors
from ssd1b.training.guard import Guard
from ssd1b.training.optimizers import Optimizers
from ssd1b.training.processes import Processes, shared_out, whole
from ssd1b.training.settings import LoopSettings
from ssd1b.weights.files import write_tensors

FOLDER = "checkpoints"
"""In a run's folder."""


class Latest(nn.Module):
    """In an average's place where none is kept: the model as it is, and nothing to remember."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "module", model)  # not a submodule: its weights are kept once
        self.module: nn.Module

    def update_parameters(self, model: nn.Module) -> None:
        """Nothing: it is the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a step changes. Random numbers and data are functions of the step, and need no place here."""

    model: nn.Module
    average: AveragedModel | Latest
    optimizers: Optimizers
    guard: Guard

    def named_tensors(self) -> dict[str, Tensor]:
        """Everything, by names that tell where it belongs."""
        named = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        named |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, state in self.optimizers.state().items():
            named |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
        named["guard"] = self.guard.state()
        return named


def save(folder: Path, step: int, settings: LoopSettings, state: State, processes: Processes) -> None:
    """Write a checkpoint; every process must ask, the first one writes and the others wait for it.

    Raises:
        InputError: the disk refused; the earlier checkpoints are what they were.
    """
    tensors: dict[str, Tensor] = {}
    memory = set()
    for name, tensor in state.named_tensors().items():
        full = whole(tensor.detach())
        if processes.first:
            full = full.cpu()
            # Nothing is copied but what is there under two names, which the file format cannot say.
            tensors[name] = full.clone() if full.untyped_storage().data_ptr() in memory else full
            memory.add(full.untyped_storage().data_ptr())
    if processes.first:
        _write(folder, step, settings, tensors)
    processes.wait()


def restore(path: Path, state: State, settings: LoopSettings) -> int:
    """Fill everything from a checkpoint that ``newest`` found; return the number of finished steps.

    Raises:
        InputError: it is of another model, or of another optimizer.
    """
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        before, now = (
            _moved_by(each) for each in (json.loads(file.metadata()["settings"]), asdict(settings))
        )
        if before != now:
            raise InputError(f"{named(path)} is of a run with optimizer {before}, not {now}")

        def part(prefix: str) -> dict[str, Tensor]:
            mine = [name for name in names if name.startswith(prefix)]
            return {name.removeprefix(prefix): file.get_tensor(name) for name in mine}

        try:
            for module, prefix in ((state.model, "model."), (state.average, "average.")):
                held = module.state_dict()
                module.load_state_dict(
                    {
                        name: shared_out(tensor, held[name]) if name in held else tensor
                        for name, tensor in part(prefix).items()
                    }
                )
        except RuntimeError as error:
            raise InputError(f"{path} is of another model: {str(error).splitlines()[1].strip()}") from error
        state.optimizers.load(
            {
                name: remembered
                for name, _ in state.model.named_parameters()
                if (remembered := part(f"optimizer.{name}."))
            }
        )
        if "guard" in names:
            state.guard.load(file.get_tensor("guard"))
        return int(file.metadata()["step"])


def begun(out: Path) -> bool:
    """Whether a run's folder holds checkpoints, whatever state they are in."""
    folder = out / FOLDER
    return folder.is_dir() and bool(_all(folder))


def newest(folder: Path, *, tidy: bool = False) -> Path | None:
    """The newest checkpoint that is what was written there, to the bit; None where there are none at all.

    Args:
        folder: of the checkpoints.
        tidy: warn of newer ones that cannot be used, and rename them, so that they are in nobody's way.

    Raises:
        InputError: there are checkpoints, and none can be used.
    """
    troubles = {}
    for path in reversed(_all(folder)):
        trouble = _trouble(path)
        if trouble is None:
            for each in troubles if tidy else ():
                aside = _set_aside(each)
                warnings.warn(
                    f"checkpoint {each.name} cannot be used: {troubles[each]}; it is now called "
                    f"{aside.name}, and the run goes on from {path.name}",
                    stacklevel=2,
                )
            return path
        troubles[path] = trouble
    if not troubles:
        return None
    what = "; ".join(f"{path.name}: {trouble}" for path, trouble in troubles.items())
    raise InputError(f"no checkpoint in {named(folder)} can be used ({what}): name another folder for --out")


def own(out: Path) -> None:
    """Make a run's folder, or find that it is one; for those who write there before the loop does.

    Raises:
        InputError: it holds files that are not the program's, or it cannot be written.
    """
    if not (out / FOLDER).is_dir():  # runs of older versions have no marks
        claim(out)


def clear(out: Path) -> None:
    """Make a run's folders; remove what a killed run was writing there.

    Raises:
        InputError: the disk refused, or something else has a folder's name.
    """
    try:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        for folder in (out, out / FOLDER):
            remove_unfinished(folder)
    except OSError as error:
        raise InputError(f"cannot write {named(out / FOLDER)}: {reason(error)}") from error


def _moved_by(settings: Mapping[str, Any]) -> str:
    """Which optimisers remember something in a checkpoint."""
    return settings["optimizer"] + (" and Muon" if settings["muon_rate"] is not None else "")


def _trouble(path: Path) -> str | None:
    """Why a checkpoint cannot be used."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            if "digest" not in said or not said.get("step", "").isdecimal():
                return "it has no step or no digest, as of an older version or of another program"
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            whole = said["digest"] == _digest(said, tensors)
            return None if whole else "it is damaged: what is in it is not what was written"
    except InputError as error:
        return str(error)
    except (SafetensorError, OSError) as error:
        return f"it is damaged or cannot be read ({str(error).removeprefix('Error while deserializing ')})"


def _digest(said: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of the tensors, the step and the settings."""
    return digest_of_tensors(tensors, f"{said['step']} {said.get('settings')}").hex()


def _set_aside(path: Path) -> Path:
    """Rename what cannot be used; it may be the user's own, and is not removed."""
    aside = path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        aside = aside.with_name(f"{aside.name}-again")
    path.rename(aside)
    return aside


def _write(folder: Path, step: int, settings: LoopSettings, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint aside, rename it, and only then remove older ones."""
    path = folder / f"step-{step:08d}.safetensors"
    said = {"step": str(step), "settings": json.dumps(asdict(settings))}
    try:
        with replacing(path) as aside:
            write_tensors(aside, tensors, {**said, "digest": _digest(said, tensors)})
    except InputError as error:
        earlier = [each for each in _all(folder) if each != path]
        left = (
            f"{earlier[-1].name} is still there to go on from"
            if earlier
            else "there is no earlier checkpoint"
        )
        raise InputError(f"{error}; {left}") from error
    before_decay = folder / f"step-{settings.steps - settings.decay_steps:08d}.safetensors"
    # A later one is of a run that was longer, and not ours to count.
    until_now = [each for each in _all(folder) if each <= path]
    for old in until_now[:-2]:
        if old != before_decay and old.is_file() and not old.is_symlink():
            old.unlink()


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}\.safetensors", path.name))
