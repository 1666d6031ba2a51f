"""A model's trained parameters and buffers, and their average."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ssd1b.errors import InputError
from ssd1b.training.processes import shard_like
from ssd1b.weights.files import first_few


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name; all others are frozen."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters and the buffers, by their names in the state dict."""
    parameters = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, each in parameters if not each.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a model with what ``trained_tensors`` gave.

    Raises:
        InputError: the tensors have other names or shapes.
    """
    held = trained_tensors(model)
    for names, problem in ((held.keys() - tensors, "missing"), (tensors.keys() - held, "unexpected")):
        if names:
            raise InputError(f"{problem} tensors: {first_few(sorted(names))}")
    for name, tensor in tensors.items():
        if tensor.shape != held[name].shape:
            raise InputError(f"{name} has shape {list(tensor.shape)}, not {list(held[name].shape)}")
    shards = {name: shard_like(tensor, held[name]) for name, tensor in tensors.items()}
    model.load_state_dict(shards, strict=False)  # frozen tensors are missing


_COUNT = "updates"
"""Name of the number of updates in the state."""


class Average:
    """An exponential moving average of a model's trained parameters; it shares the frozen ones.

    The decay is warmed up as ``min(decay, (1 + step) / (10 + step))``.

    Args:
        model: on its device.
        decay: per step; 0 keeps no average.

    Attributes:
        module: the averaged model, in evaluation mode; with decay 0 the model itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        frozen = {id(each): each for each in model.parameters() if not each.requires_grad}
        self.module = copy.deepcopy(model, frozen).eval() if decay else model
        self._decay, self._count = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's parameters after a step."""
        if self.module is model:
            return
        averaged, current = (tuple(trained_parameters(each).values()) for each in (self.module, model))
        copied = [*zip(self.module.buffers(), model.buffers(), strict=True)]
        if self._count:
            decay = min(self._decay, (1 + self._count) / (10 + self._count))
            get_ema_multi_avg_fn(decay)(averaged, current, self._count)
        else:
            copied += zip(averaged, current, strict=True)
        for ours, theirs in copied:
            ours.copy_(theirs)
        self._count += 1

    def state(self) -> dict[str, Tensor]:
        """Return the averaged parameters and the number of updates; nothing with decay 0."""
        return {**trained_tensors(self.module), _COUNT: torch.tensor(self._count)} if self._decay else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Fill the average with what ``state`` gave.

        Raises:
            InputError: it is from another model.
        """
        if self._decay:
            load_trained_tensors(self.module, {name: each for name, each in state.items() if name != _COUNT})
            self._count = int(state[_COUNT])
