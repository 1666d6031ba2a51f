"""The one training loop: steps, averages, checkpoints that can be resumed bit by bit.

Everything random in a step is a function of the seed and the step's number, and so is the step's data. A run
that was stopped anywhere therefore goes on as if it had not been.
"""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ssd1b.errors import InputError
from ssd1b.training import checkpoints
from ssd1b.training.batches import Batch, Batches, Share
from ssd1b.training.checkpoints import FOLDER, Latest, State
from ssd1b.training.gradient_checkpointing import checkpoint_gradients
from ssd1b.training.guard import Guard
from ssd1b.training.logs import Log
from ssd1b.training.optimizers import Optimizers
from ssd1b.training.processes import Loss, Processes, whole
from ssd1b.training.settings import LoopSettings

Validate = Callable[[nn.Module, int], Mapping[str, float | Tensor]]
"""``validate(average, step)``: numbers, and pictures ``[3, H, W]`` with values from 0 to 1, for the log."""

_STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals after which a run ends with a checkpoint of the step it is in."""


def train(
    model: nn.Module, batches: Batches, loss: Loss, settings: LoopSettings, out: Path, *,
    resume: bool, label: str, validate: Validate | None = None,
) -> nn.Module:  # fmt: skip
    """Train ``model`` and return its averaged weights as a module in evaluation mode.

    Started by ``torchrun``, every process calls this with the same arguments, and learns from its share of
    each batch. The first one writes.

    Args:
        model: parameters in float32, already on their device.
        batches: the data, read ahead in a process of its own.
        loss: the terms of one micro-batch, a pure function of the model, the batch and torch's global
            generator; means over the pictures, so that the mean over parts is that of the whole.
        settings: the run.
        out: folder for ``log.jsonl``, ``tensorboard/`` and ``checkpoints/``.
        resume: go on from the newest complete checkpoint in ``out``, if there is one.
        label: what the progress bar is called.
        validate: is given the averaged weights in evaluation mode; called in every process, of which the
            first one's answer goes into the log.

    Raises:
        InputError: ``out`` holds a run already and ``resume`` is False; too many gradients in a row were not
            finite or spikes; the disk is full; or the processes cannot share the batches.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint of the last whole step written.
    """
    processes = Processes(next(model.parameters()).device, settings)
    model.to(processes.device)
    if settings.gradient_checkpointing:
        checkpoint_gradients(model)
    average = _average(model, settings.ema_decay)
    asked = processes.share_out(model, average.module, loss)
    state = State(model=model, average=average, optimizers=Optimizers(model, settings), guard=Guard(settings))
    start = _start(out, state, settings, processes, resume=resume)
    share = Share(batches=batches, parts=processes.parts, count=settings.micro_batches)

    hidden = None if processes.first else True
    bar = tqdm(total=settings.steps, initial=start, desc=label, unit="step", disable=hidden)
    log = closing(Log(out, start, silent=not processes.first))
    reader = closing(_read_ahead(share, start, settings.steps, state.named_tensors().values()))
    with _polite_stop() as stopping, log as log, bar, reader as ahead:
        for step, parts in enumerate(ahead, start):
            terms = _add_gradients(asked, parts, step, settings, processes)
            norm = float(whole(nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)))
            followed = state.guard.lets_through(norm)
            if followed:
                state.optimizers.step(settings.share(step))
                average.update_parameters(model)
            model.zero_grad(set_to_none=True)

            *means, stop = processes.mean([*terms.values(), float(stopping())])
            told = dict(zip(terms, means, strict=True)) | {"grad_norm": norm}
            log.add(told if followed else {})
            bar.update()
            bar.set_postfix(loss=f"{told['loss']:.4f}", refresh=False)
            done = step + 1
            if done % settings.log_steps == 0:
                log.write_means(done, {"rate_share": settings.share(step), "skipped": state.guard.skipped})
            if validate is not None and settings.validates_after(done):
                with torch.no_grad():
                    log.write(done, validate(average.module, done))
            if stop or settings.saves_after(done):
                checkpoints.save(out / FOLDER, done, settings, state, processes)
            if stop:
                raise KeyboardInterrupt
    return processes.gathered(average.module).eval()


def _start(out: Path, state: State, settings: LoopSettings, processes: Processes, *, resume: bool) -> int:
    """Fill ``state`` from the newest checkpoint, if there is one; return the number of finished steps."""
    if checkpoints.begun(out) and not resume:
        raise InputError(f"{out} holds a run already: go on with --resume, or name another folder")
    if processes.first:
        checkpoints.own(out)
        checkpoints.clear(out)
    processes.wait()
    newest = checkpoints.newest(out / FOLDER, tidy=processes.first)
    if newest is None:
        return 0
    return checkpoints.restore(newest, state, settings)


def _add_gradients(
    asked: nn.Module, parts: list[Batch], step: int, settings: LoopSettings, processes: Processes
) -> dict[str, Tensor]:
    """Leave the whole batch's gradient in the weights; return the terms, means over this process's parts."""
    terms: dict[str, Tensor] = {}
    for number, batch in zip(processes.parts, parts, strict=True):
        last = number == processes.parts[-1]
        with nullcontext() if last else processes.unsynchronised(asked):
            # A CPU's generator takes 32 bits of its seed; the golden ratio's keep the parts far apart.
            torch.manual_seed(settings.seed * 1_000_003 + step + number * 0x9E3779B9)
            values = asked(batch)
            processes.meet()  # here one that hangs is named; below, the others would wait without a word
            (values["loss"] / len(parts)).backward()
        for name, value in values.items():
            terms[name] = terms.get(name, 0) + value.detach() / len(parts)
    return terms


def _read_ahead(
    batches: Share, start: int, stop: int, weights: Iterable[Tensor] = ()
) -> Generator[list[Batch], None, None]:
    """Prepare batches while the model learns from the ones before, in a process that has no ``weights``."""
    # A process that is not forked has none; only to be told which they are it would be sent all of them.
    forked = multiprocessing.get_start_method() == "fork"
    # Any object with __getitem__ is a dataset to DataLoader; batch_size None hands the items on as they are.
    loader = DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, stop),
        num_workers=1,
        prefetch_factor=4,
        worker_init_fn=partial(_begin_to_read, list(weights) if forked else []),
    )
    reader = iter(loader)
    try:
        yield from reader
    finally:
        # At exit Python ends its children by SIGTERM, which this one ignores: after an error in a batch it
        # would wait for ever. torch has no public name for ending a reader early.
        reader._shutdown_workers()  # type: ignore[attr-defined]


def _begin_to_read(weights: Iterable[Tensor], worker: int) -> None:
    """Leave stopping, which terminals and batch systems ask of every process, to the one that trains.

    And free the weights. A forked process shares the memory of its parent until one of them writes: every
    weight that learns would from then on be in memory twice.
    """
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    for each in weights:
        if each.device.type == "cpu" and not hasattr(each, "device_mesh"):
            storage = each.untyped_storage()
            if storage.resizable():
                storage.resize_(0)


def _average(model: nn.Module, decay: float) -> AveragedModel | Latest:
    if decay == 0:
        return Latest(model)
    return AveragedModel(model, multi_avg_fn=_warmed_average(decay)).eval()


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
