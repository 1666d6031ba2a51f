"""Tasks: what a training step updates, one model with one loss or several models in turn."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ssd1b.training.batches import Batch
from ssd1b.training.gradient_checkpointing import checkpoint_gradients
from ssd1b.training.guard import Guard
from ssd1b.training.optimizers import Optimizers
from ssd1b.training.processes import Loss, Processes, full_tensor
from ssd1b.training.settings import LoopSettings
from ssd1b.training.trained import Average, load_trained_tensors, trained_tensors

Terms = Mapping[str, Tensor | float]
"""Scalars of a step for the log, by name; the progress bar shows the one called ``loss``."""

SomeBatch = TypeVar("SomeBatch", contravariant=True)


@runtime_checkable
class Task(Protocol[SomeBatch]):
    """The learners of a training, and how a step updates them.

    A ``Learner`` is itself the task of one model and one loss. A task of several learners chooses in
    ``update`` which of them to update, and in which order. Their losses may use other learners' models and
    averages.
    """

    @property
    def learners(self) -> Mapping[str, "Learner[Any]"]:
        """Everything that a step changes, by name."""
        ...

    def update(self, step: int, parts: Sequence[SomeBatch]) -> Terms:
        """Take one step: a pure function of the learners' states, of the step and of its micro-batches.

        Args:
            step: number of the step, from 0.
            parts: this process's micro-batches.

        Returns:
            Means over the parts, with the same names in every process. Names may differ between steps.
        """
        ...


class Learner(Generic[Batch]):
    """A model in training: its trained parameters, their average, its optimisers and its loss.

    Only parameters that require gradients are trained, averaged and saved. Frozen ones never change.

    Args:
        model: trained parameters in float32. It is moved to the processes' device.
        loss: the terms of one micro-batch, a pure function of the model, the batch, torch's global generator
            and other learners. Terms are means over the images, so that the mean over micro-batches is that
            of the batch.
        settings: rates, decays, averaging, clipping, seed and gradient checkpointing. Steps and micro-batches
            are those of the run.
        processes: of the training.

    Attributes:
        model: the model.
        average: its averaged parameters.
        guard: skips broken gradients.
        settings: as given.
    """

    def __init__(
        self, model: nn.Module, loss: Loss[Batch], settings: LoopSettings, processes: Processes
    ) -> None:
        model.to(processes.device)
        if settings.gradient_checkpointing:
            checkpoint_gradients(model)
        self.model, self.settings, self._processes = model, settings, processes
        self.average = Average(model, settings.ema_decay)
        # Sharded modules cannot be copied, so the module that gathers the result is created before.
        self._gathered = copy.deepcopy(model).cpu() if processes.sharded else None
        self._loss = processes.distribute(model, self.average.module, loss)
        self._optimizers = Optimizers(model, settings)
        self.guard = Guard(settings)

    @property
    def learners(self) -> Mapping[str, "Learner[Any]"]:
        """The task's only learner."""
        return {"model": self}

    def update(self, step: int, parts: Sequence[Batch]) -> Terms:
        """Follow the gradient of the loss, unless it is not finite or a spike.

        Returns:
            The loss's terms, means over the parts, and ``grad_norm``; nothing if the gradient was skipped.

        Raises:
            InputError: too many gradients in a row were skipped.
        """
        self.model.zero_grad(set_to_none=True)  # another learner's loss may have left gradients here
        terms = self._add_gradients(step, parts)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        length = float(full_tensor(norm))
        followed = self.guard.lets_through(length)
        if followed:
            self._optimizers.step(self.settings.share(step))
            self.average.update(self.model)
        self.model.zero_grad(set_to_none=True)
        return {**terms, "grad_norm": length} if followed else {}

    def _add_gradients(self, step: int, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """Leave the whole batch's gradient in the parameters; return the terms, means over the parts."""
        terms: dict[str, Tensor] = {}
        for number, batch in zip(self._processes.parts, parts, strict=True):
            last = number == self._processes.parts[-1]
            with nullcontext() if last else self._processes.no_sync(self._loss):
                # A CPU's generator takes 32 bits of its seed; those of the golden ratio keep the parts far
                # apart.
                torch.manual_seed(self.settings.seed * 1_000_003 + step + number * 0x9E3779B9)
                values = self._loss(batch)
                self._processes.barrier()  # names a process that hangs; below, the others would wait silently
                (values["loss"] / len(parts)).backward()
            for name, value in values.items():
                terms[name] = terms.get(name, 0) + value.detach() / len(parts)
        return terms

    def averaged(self) -> nn.Module:
        """Return the averaged model in evaluation mode; one that was sharded is gathered on the CPU."""
        module = self.average.module
        if self._gathered is not None:
            tensors = {name: full_tensor(tensor) for name, tensor in module.state_dict().items()}
            self._gathered.load_state_dict(tensors)
            module = self._gathered
        return module.eval()

    def state(self) -> dict[str, Tensor]:
        """Return everything that a step changes, by name. Random numbers and data follow from the step."""
        groups = {
            "weights": trained_tensors(self.model),
            "average": self.average.state(),
            "optimizer": self._optimizers.state(),
        }
        named = {f"{group}.{name}": each for group, state in groups.items() for name, each in state.items()}
        return named | {"guard": self.guard.state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave.

        Raises:
            InputError: it is from another model.
        """

        def group(name: str) -> dict[str, Tensor]:
            prefix = f"{name}."
            return {key.removeprefix(prefix): each for key, each in state.items() if key.startswith(prefix)}

        load_trained_tensors(self.model, group("weights"))
        self.average.load(group("average"))
        self._optimizers.load(group("optimizer"))
        self.guard.load(state["guard"])
