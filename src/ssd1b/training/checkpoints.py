"""Everything that a step changes, in a file from which a run goes on bit by bit."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ssd1b.errors import InputError
from ssd1b.saving import replacing
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
    tensors = {}
    for name, tensor in state.named_tensors().items():
        full = whole(tensor.detach())
        if processes.first:
            tensors[name] = full.to("cpu", copy=True)
    if processes.first:
        _write(folder, step, settings, tensors)
    processes.wait()


def restore(path: Path, state: State) -> int:
    """Fill everything from a checkpoint; return the number of finished steps.

    Raises:
        InputError: it is of another model.
    """
    with safe_open(path, framework="pt") as file:
        names = file.keys()

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


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; one that a crash of the machine cut off is passed over."""
    for path in reversed(_all(folder)):
        try:
            with safe_open(path, framework="pt"):
                return path
        except SafetensorError:
            continue
    return None


def clear(out: Path) -> None:
    """Make a run's folders; remove what a killed run was writing there."""
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    for aside in (*out.glob("*.partial"), *(out / FOLDER).glob("*.partial")):
        aside.unlink()


def _write(folder: Path, step: int, settings: LoopSettings, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint aside, rename it, and only then remove older ones."""
    path = folder / f"step-{step:08d}.safetensors"
    try:
        with replacing(path) as aside:
            write_tensors(aside, tensors, {"step": str(step), "settings": json.dumps(asdict(settings))})
    except InputError as error:
        earlier = newest(folder)
        left = f"{earlier.name} is still there to go on from" if earlier else "there is no earlier checkpoint"
        raise InputError(f"{error}; {left}") from error
    before_decay = folder / f"step-{settings.steps - settings.decay_steps:08d}.safetensors"
    for old in _all(folder)[:-2]:
        if old != before_decay:
            old.unlink()


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}\.safetensors", path.name))
