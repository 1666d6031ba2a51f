"""The training loop: steps, log, validation, and checkpoints from which a run resumes bit for bit.

Random numbers and data of a step are functions of the seed and the step's number. A run that was interrupted
anywhere therefore ends with the same weights as one that was not.
"""

import multiprocessing
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssd1b.errors import ConflictError, NotFoundError
from ssd1b.files import named
from ssd1b.progress import progress_bar, update_unmeasured
from ssd1b.saving import claim_folder
from ssd1b.training import checkpoints
from ssd1b.training.batches import Batch, Batches, Share
from ssd1b.training.checkpoints import FOLDER
from ssd1b.training.logs import Log
from ssd1b.training.processes import Loss, Processes, is_visible
from ssd1b.training.settings import LoopSettings
from ssd1b.training.task import Learner, Task

Values = Mapping[str, float | Tensor]
"""Numbers, and images ``[3, H, W]`` with values from 0 to 1, for the log."""

Validate = Callable[[nn.Module, int], Values]
"""``validate(average, step)``, with the number of finished steps."""

stop_requested = threading.Event()
"""Ends the run of this process after the step it is in, with a checkpoint."""

_STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that request a stop."""


def train(
    model: nn.Module, batches: Batches[Batch], loss: Loss[Batch], settings: LoopSettings, out: Path, *,
    resume: bool, label: str, validate: Validate | None = None,
) -> nn.Module:  # fmt: skip
    """Train one model for one loss, and return its averaged parameters as a module in evaluation mode.

    With several processes, each calls this with the same arguments, and learns from its share of each batch.
    The first one writes.

    Args:
        model: see ``Learner``.
        batches: the data, read ahead in a process of its own.
        loss: see ``Learner``.
        settings: of the run.
        out: folder of the run, see ``run``.
        resume: see ``run``.
        label: of the progress bar.
        validate: is called with the averaged model in evaluation mode, see ``run``.

    Raises:
        InputError: as ``run``.
        KeyboardInterrupt: as ``run``.
    """
    processes = Processes(next(model.parameters()).device, settings)
    learner = Learner(model, loss, settings, processes)
    run(
        learner, batches, settings, processes, out, resume=resume, label=label,
        validate=None if validate is None else partial(validate, learner.average.module),
    )  # fmt: skip
    return learner.averaged()


def run(
    task: Task[Batch], batches: Batches[Batch], settings: LoopSettings, processes: Processes, out: Path, *,
    resume: bool, label: str, validate: Callable[[int], Values] | None = None,
) -> None:  # fmt: skip
    """Take the steps of a task, with log, checkpoints and validation.

    Args:
        task: to train.
        batches: the data, read ahead in a process of its own.
        settings: number of steps, micro-batches, checkpoints, log and validation. For everything else, each
            learner has its own settings.
        processes: that train together.
        out: folder for ``log.jsonl``, ``tensorboard/`` and ``checkpoints/``.
        resume: continue from the newest valid checkpoint in ``out``, if there is one.
        label: of the progress bar.
        validate: is called with the number of finished steps in every process, first with 0; the first one's
            answer goes into the log.

    Raises:
        InputError: ``out`` contains a run and ``resume`` is False; too many gradients in a row were
            skipped; the disk is full; or a batch cannot be divided into micro-batches.
        KeyboardInterrupt: after SIGINT, SIGTERM or ``stop_requested``, with a checkpoint of the last whole
            step written.
    """
    learners = task.learners
    start = _start(out, learners, processes, resume=resume)
    share = Share(batches=batches, parts=processes.parts, count=settings.micro_batches)

    def validate_after(done: int) -> None:
        if validate is not None and settings.validates_after(done):
            with torch.no_grad():
                log.write(done, validate(done))

    bar = progress_bar(
        total=settings.steps, start=start, label=label, unit="step", keep=True, hidden=not processes.first
    )
    log = Log(out, start, silent=not processes.first)
    changed = checkpoints.named_tensors(learners).values()
    reader = closing(_read_ahead(share, start, settings.steps, changed))
    with _stop_on_signals(), closing(log), bar, reader as ahead:
        for step, parts in enumerate(ahead, start):
            if step == 0:  # here, because the log may start a thread, and the reader is forked by now
                validate_after(0)
            with _signals_held_back():
                terms = task.update(step, parts)
            *means, stop = processes.mean([*terms.values(), float(stop_requested.is_set())])
            means_by_name = dict(zip(terms, means, strict=True))
            log.add(means_by_name)
            update_unmeasured(bar) if step == start else bar.update()
            if "loss" in means_by_name:
                bar.set_postfix(loss=f"{means_by_name['loss']:.4f}", refresh=False)
            done = step + 1
            if settings.logs_after(done):
                skipped = sum(each.guard.skipped for each in learners.values())
                log.write_means(done, {"rate_share": settings.share(step), "skipped": skipped})
            validate_after(done)
            if stop or settings.saves_after(done):
                checkpoints.save(out / FOLDER, done, settings, learners, processes)
            if stop:
                raise KeyboardInterrupt


def _start(out: Path, learners: Mapping[str, Learner[Any]], processes: Processes, *, resume: bool) -> int:
    """Fill the learners from the newest checkpoint, if there is one; return the number of finished steps."""
    name = processes.decide(partial(_begin, out, resume=resume))
    if name is None:
        return 0
    path = out / FOLDER / name
    if not is_visible(path):
        raise NotFoundError(f"{named(path)} is not visible on {socket.gethostname()}")
    return checkpoints.restore(path, learners)


def _begin(out: Path, *, resume: bool) -> str | None:
    """Create or tidy up a run's folders; return the name of the checkpoint to resume from."""
    if checkpoints.has_checkpoints(out) and not resume:
        raise ConflictError(
            f"{out} already contains a run: continue it with --resume, or name another folder"
        )
    claim_folder(out)
    checkpoints.clear(out)
    newest = checkpoints.newest(out / FOLDER, tidy=True)
    return None if newest is None else newest.name


def _read_ahead(
    batches: Share[Batch], start: int, stop: int, weights: Iterable[Tensor] = ()
) -> Generator[list[Batch], None, None]:
    """Read batches ahead of the training, in a process that frees its copy of ``weights``."""
    # A process that is not forked has no copy, and passing the weights would create one.
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
        # At exit Python terminates its children by SIGTERM, which the reader ignores: after an error in a
        # batch it would wait forever. torch has no public function for this.
        reader._shutdown_workers()  # type: ignore[attr-defined]


def _begin_to_read(weights: Iterable[Tensor], worker: int) -> None:
    """Ignore the signals that stop a run, which the training process handles, and free the weights.

    A forked process shares its parent's memory until one of them writes: after the first step, every trained
    weight would be in memory twice.
    """
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    for each in weights:
        if each.device.type == "cpu" and not hasattr(each, "device_mesh"):
            storage = each.untyped_storage()
            if storage.resizable():
                storage.resize_(0)


@contextmanager
def _signals_held_back() -> Generator[None, None, None]:
    """Hold back the signals that request a stop, which waits for the end of the step anyway.

    Ctrl-C in a terminal and ``timeout`` signal the whole process group, also the C++ compilers that a step
    may start: they would end, and the step with them. Processes inherit what is held back.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stop_on_signals() -> Generator[None, None, None]:
    """Request a stop on SIGINT and SIGTERM; only a process's main thread can handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = [signal.signal(number, lambda *_: stop_requested.set()) for number in _STOPS]
    try:
        yield
    finally:
        for number, handler in zip(_STOPS, previous, strict=True):
            signal.signal(number, handler)
        stop_requested.clear()
