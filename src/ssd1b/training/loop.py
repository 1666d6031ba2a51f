"""The one training loop: steps, averages, checkpoints that can be resumed bit by bit.

Everything random in a step is a function of the seed and the step's number, and so is the step's data. A run
that was stopped anywhere therefore goes on as if it had not been.
"""

import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ssd1b.errors import InputError
from ssd1b.training.muon import Muon

Batch: TypeAlias = dict[str, Any]
"""What one step learns from: named tensors and lists."""

Loss = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
"""``loss(model, batch)``: named scalar terms; the one called ``loss`` is minimised."""


@runtime_checkable
class Batches(Protocol):
    """The batch of each step, a pure function of the step's number."""

    def __getitem__(self, step: int) -> Batch: ...


_OUTER_LAYERS = ("embed", "conv_in", "conv_out", "quant_conv")
"""Parts of the names of layers that AdamW moves even beside Muon."""

_STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals after which a run ends with a checkpoint of the step it is in."""

MAX_SKIPPED = 20
"""Steps in a row whose gradient may be NaN or infinite before the run gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What decides a run.

    Attributes:
        steps: optimiser steps in all.
        batch_size: what each step learns from; the data are asked for so many.
        learning_rate: the constant rate between warm-up and decay.
        muon_rate: likewise, for the matrices and convolutions inside the network, which Muon then moves
            (see ``_Optimizer``); None leaves them, too, to AdamW.
        muon_decay: Muon's weight decay, which bounds the largest singular value by its inverse.
        warmup_steps: linear rise from zero at the start.
        decay_steps: linear fall to zero at the end. A constant rate in between means that a finished run can
            be made longer from its last checkpoint before the decay.
        betas: AdamW's two averaging constants.
        weight_decay: AdamW's.
        max_grad_norm: gradients longer than this are shortened to it.
        ema_decay: decay per step of the averaged weights, which are what a run is for; warmed up as
            ``min(ema_decay, (1 + step) / (10 + step))``.
        seed: of everything random.
        checkpoint_steps: a checkpoint every so many steps; the newest two and the last one before the decay
            are kept.
        log_steps: a line of the log every so many steps.
    """

    steps: int
    batch_size: int
    learning_rate: float
    muon_rate: float | None = None
    muon_decay: float = 0.3
    warmup_steps: int = 200
    decay_steps: int
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    checkpoint_steps: int = 200
    log_steps: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate must be between 0 and 1, got {self.learning_rate}")

    def share(self, step: int) -> float:
        """Share of the rates at a step: trapezoidal, so that a run can be prolonged (see ``decay_steps``)."""
        rising = (step + 1) / max(self.warmup_steps, 1)
        falling = (self.steps - step) / max(self.decay_steps, 1)
        return min(1.0, rising, falling)


def train(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    settings: LoopSettings,
    out: Path,
    *,
    resume: bool,
    label: str,
) -> nn.Module:
    """Train ``model`` and return its averaged weights as a module in evaluation mode.

    Args:
        model: parameters in float32, already on their device.
        batches: the data, read ahead in a process of its own.
        loss: the terms of one step, a pure function of the model, the batch and torch's global generator.
        settings: the run.
        out: folder for ``log.jsonl`` and ``checkpoints/``.
        resume: go on from the newest complete checkpoint in ``out``, if there is one.
        label: what the progress bar is called.

    Raises:
        InputError: ``out`` holds a run already and ``resume`` is False; or the loss stays NaN.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint of the last whole step written.
    """
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    average = AveragedModel(model, multi_avg_fn=_warmed_average(settings.ema_decay))
    optimizer = _Optimizer(model, settings)
    start = 0
    newest = _newest(checkpoints)
    if newest is not None:
        if not resume:
            raise InputError(f"{out} holds a run already: go on with --resume, or name another folder")
        start = _restore(newest, model, average, optimizer)

    skipped, terms, clock = 0, [], time.perf_counter()
    bar = tqdm(total=settings.steps, initial=start, desc=label, unit="step", disable=None)
    with _polite_stop() as stopping, (out / "log.jsonl").open("a") as log, bar:
        for step, batch in enumerate(_read_ahead(batches, start, settings.steps), start):
            torch.manual_seed(settings.seed * 1_000_003 + step)
            values = loss(model, batch)
            values["loss"].backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            skipped = 0 if norm.isfinite() else skipped + 1
            if skipped > MAX_SKIPPED:
                raise InputError(
                    f"the gradient was not finite {skipped} steps in a row (step {step}): lower the rate"
                )
            if not skipped:
                optimizer.step(settings.share(step))
                average.update_parameters(model)
            model.zero_grad(set_to_none=True)

            terms.append({**{name: value.item() for name, value in values.items()}, "grad_norm": norm.item()})
            bar.update()
            bar.set_postfix(loss=f"{terms[-1]['loss']:.4f}", refresh=False)
            if (step + 1) % settings.log_steps == 0:
                means = {name: math.fsum(t[name] for t in terms) / len(terms) for name in terms[0]}
                seconds = (time.perf_counter() - clock) / len(terms)
                row = {
                    "step": step + 1,
                    **means,
                    "rate_share": settings.share(step),
                    "seconds_per_step": seconds,
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                terms, clock = [], time.perf_counter()
            due = (step + 1) % settings.checkpoint_steps == 0
            if due or stopping() or step + 1 in (settings.steps, settings.steps - settings.decay_steps):
                _save(checkpoints, step + 1, settings, model, average, optimizer)
            if stopping():
                raise KeyboardInterrupt
    return average.module.eval()


class _Optimizer:
    """AdamW, and Muon beside it where wanted.

    Muon is for what turns features into features: not for embeddings, nor for the layers in which pictures
    enter and leave, nor for biases and norms.
    """

    def __init__(self, model: nn.Module, settings: LoopSettings) -> None:
        inner, rest = {}, {}
        for name, parameter in model.named_parameters():
            outer = parameter.ndim < 2 or any(part in name for part in _OUTER_LAYERS)
            (rest if outer or settings.muon_rate is None else inner)[name] = parameter
        adam = torch.optim.AdamW(
            rest.values(), lr=settings.learning_rate, betas=settings.betas,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self._each: list[tuple[torch.optim.Optimizer, float, list[str]]] = [
            (adam, settings.learning_rate, list(rest))
        ]
        if inner:
            assert settings.muon_rate is not None
            muon = Muon(inner.values(), lr=settings.muon_rate, weight_decay=settings.muon_decay)
            self._each.append((muon, settings.muon_rate, list(inner)))

    def step(self, share: float) -> None:
        """Move the weights, at a share of the rates."""
        for optimizer, rate, _ in self._each:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()

    @property
    def states(self) -> dict[str, dict[str, Any]]:
        """What is remembered of each parameter, by its name; to be read and to be filled."""
        return {
            name: optimizer.state[parameter]
            for optimizer, _, names in self._each
            for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True)
        }


def _read_ahead(batches: Batches, start: int, stop: int) -> DataLoader:
    """Prepare batches while the model learns from the ones before."""
    # Any object with __getitem__ is a dataset to DataLoader; batch_size None hands the items on as they are.
    return DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, stop),
        num_workers=1,
        prefetch_factor=4,
        worker_init_fn=_ignore_stops,
    )


def _ignore_stops(worker: int) -> None:
    """Leave stopping, which terminals and batch systems ask of every process, to the one that trains."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


def _warmed_average(decay: float) -> Callable[..., None]:
    """An exponential moving average that follows closely at first."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        step = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(averaged, current, count)

    return update


@contextmanager
def _polite_stop() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a question that is asked between steps, so that no step is cut in two."""
    received: list[int] = []
    previous = [signal.signal(number, lambda number, _: received.append(number)) for number in _STOPS]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(_STOPS, previous, strict=True):
            signal.signal(number, handler)


def _save(
    folder: Path,
    step: int,
    settings: LoopSettings,
    model: nn.Module,
    average: AveragedModel,
    optimizer: _Optimizer,
) -> None:
    """Write a checkpoint aside, rename it, and only then remove older ones."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for name, state in optimizer.states.items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    path = folder / f"step-{step:08d}.safetensors"
    aside = path.with_suffix(".partial")
    save_file(tensors, aside, metadata={"step": str(step), "settings": json.dumps(asdict(settings))})
    os.replace(aside, path)
    before_decay = folder / f"step-{settings.steps - settings.decay_steps:08d}.safetensors"
    for old in _all(folder)[:-2]:
        if old != before_decay:
            old.unlink()


def _restore(path: Path, model: nn.Module, average: AveragedModel, optimizer: _Optimizer) -> int:
    """Fill model, average and optimiser from a checkpoint; return the number of finished steps."""
    with safe_open(path, framework="pt") as file:
        device = next(model.parameters()).device

        def part(prefix: str) -> dict[str, Tensor]:
            names = [name for name in file.keys() if name.startswith(prefix)]
            return {name.removeprefix(prefix): file.get_tensor(name).to(device) for name in names}

        try:
            model.load_state_dict(part("model."))
            average.load_state_dict(part("average."))
        except RuntimeError as error:
            raise InputError(f"{path} is of another model: {str(error).splitlines()[1].strip()}") from error
        for name, state in optimizer.states.items():
            saved = part(f"optimizer.{name}.")
            # AdamW keeps its step count on the CPU unless it is capturable.
            state.update({k: v.cpu() if k == "step" else v for k, v in saved.items()})
        return int(file.metadata()["step"])


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}\.safetensors", path.name))


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; one that a crash of the machine cut off is passed over."""
    for path in reversed(_all(folder)):
        try:
            with safe_open(path, framework="pt"):
                return path
        except SafetensorError:
            continue
    return None
