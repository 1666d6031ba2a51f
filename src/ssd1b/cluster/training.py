"""A training on a Ray cluster, by Ray Train: processes that train together, and start again when one ends.

Each process does what one of ``torchrun`` does. Checkpoints are the training's own, in its folder; Ray Train
stores nothing.
"""

import asyncio
import io
import os
import pickle
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import redirect_stderr, suppress
from importlib.metadata import version
from threading import Thread
from typing import Any, TypeVar

from ssd1b.cluster.actor import error_of, reason_of
from ssd1b.cluster.connection import Share, divide
from ssd1b.cluster.options import LOCAL, ClusterOptions
from ssd1b.errors import ConflictError, FailedError, InputError, line, prefix_errors

T = TypeVar("T")

STOP_SECONDS = 300.0
"""How long a stopped training may take for its last step and checkpoint."""

_READ_SECONDS = 0.5
_PATIENCE = 20.0
"""Seconds to wait for the first sign of the processes before saying so."""


class _Board:
    """The actor through which the processes and the driver talk: messages one way, the stop the other way."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._written, self._stopped = asyncio.Event(), asyncio.Event()

    async def write(self, text: str) -> None:
        """Add text for the driver's standard error."""
        self._text.append(text)
        self._written.set()

    async def read(self) -> str:
        """Wait a moment for text, and return it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._written.wait(), _READ_SECONDS)
        self._written.clear()
        text, self._text = "".join(self._text), []
        return text

    async def stop(self) -> None:
        """Stop the training."""
        self._stopped.set()

    async def stopped(self) -> None:
        """Wait until the training is to stop."""
        await self._stopped.wait()


def train(
    options: ClusterOptions, work: Callable[[], T], saved: Callable[[], object], *, step_minutes: float,
    notify: Callable[[str], None],
) -> T:  # fmt: skip
    """Train in processes of the connected cluster, and return the result of the first one.

    If a process or its node ends, all are started again. On Ctrl-C they stop after the current step.

    Args:
        options: of the cluster.
        work: what each process does, as if ``torchrun`` had started it; pickled. It continues what an earlier
            call saved, and raises KeyboardInterrupt when it was stopped.
        saved: returns something that changes whenever there is more to continue from; called on this machine.
        step_minutes: how long processes wait for each other.
        notify: called with a message if no process starts for a while, and if they start again.

    Raises:
        InputError: a process raised it; or processes failed repeatedly with nothing saved in between.
        KeyboardInterrupt: on Ctrl-C; the training can be continued.
    """
    if options.gpus not in (None, 0, 1):
        raise InputError(f"--ray-gpus is {options.gpus:g}: a training process takes one GPU or none")
    share = divide(options)
    board, trained = _start_board(), Future[T]()
    with tempfile.TemporaryDirectory() as unused:
        trainer = _trainer(options, share, work, saved, board, unused, step_minutes)
        # In the main thread, Ray Train would replace the handler of Ctrl-C.
        Thread(target=_fulfil, args=(trained, trainer.fit), name="training", daemon=True).start()
        try:
            if not _show(board, trained, seconds=_PATIENCE):
                notify(f"waiting for the training's processes: {share.actors}, with {share.of_each} each")
            while not trained.done():
                _show(board, trained)
            _show(board, trained)  # what was written last
        except (KeyboardInterrupt, SystemExit):
            notify("stopping after the current step; Ctrl-C again stops at once")
            board.stop.remote()
            end = time.monotonic() + STOP_SECONDS
            while not trained.done() and time.monotonic() < end:
                _show(board, trained)
            raise
    return _result(trained)


def _start_board() -> Any:
    """Start the board on this machine's node, where it lasts as long as the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote
    return remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()


def _trainer(
    options: ClusterOptions, share: Share, work: Callable[[], object], saved: Callable[[], object],
    board: Any, folder: str, step_minutes: float,
) -> Any:  # fmt: skip
    """Make Ray Train's trainer."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from ssd1b.cluster.ray_train import Failures, LoopbackConfig

    config: Any = LoopbackConfig if options.address == LOCAL else TorchConfig
    return TorchTrainer(
        _take_part,
        train_loop_config={
            "ssd1b": version("ssd1b"), "work": pickle.dumps(work), "board": board, "cwd": os.getcwd(),
            "is_terminal": sys.stderr.isatty(),
        },
        scaling_config=ScalingConfig(
            num_workers=share.actors, use_gpu=share.gpus > 0,
            resources_per_worker={"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})},
        ),
        run_config=RunConfig(
            name="training", storage_path=folder, failure_config=FailureConfig(max_failures=-1),
            callbacks=[Failures(saved, board.write.remote)],
        ),
        torch_config=config(timeout_s=round(60 * step_minutes)),
    )  # fmt: skip


def _fulfil(future: "Future[Any]", fit: Callable[[], Any]) -> None:
    try:
        future.set_result(fit().return_value)
    except BaseException as error:
        future.set_exception(error)


def _show(board: Any, trained: "Future[Any]", seconds: float = 0.0) -> bool:
    """Copy what the processes wrote to this process's standard error.

    Args:
        board: has it.
        trained: the training.
        seconds: how long to wait for something, as long as the training lasts.

    Returns:
        Whether there was something.
    """
    import ray

    end = time.monotonic() + seconds
    while not (text := str(ray.get(board.read.remote()))) and not trained.done() and time.monotonic() < end:
        pass
    sys.stderr.write(text)
    return bool(text)


def _result(trained: "Future[T]") -> T:
    from ray.exceptions import RayError
    from ray.train import ControllerError, TrainingFailedError

    try:
        return trained.result()
    except ControllerError as error:
        cause = error.controller_failure
        if isinstance(cause, InputError):
            raise cause from None
        raise error_of(cause) or FailedError(line(str(cause))) from None
    except (TrainingFailedError, RayError) as error:
        raise FailedError(reason_of(str(error))) from None


# What follows runs in the processes of the training.


def _take_part(config: dict[str, Any]) -> Any:
    import ray.train

    from ssd1b.training.loop import stop_requested

    node, board = f"node {socket.gethostname()}", config["board"]
    with prefix_errors(node):
        if (own := version("ssd1b")) != config["ssd1b"]:
            raise ConflictError(f"ssd1b {own} is installed, and {config['ssd1b']} on the driver's machine")
    with suppress(OSError):  # relative paths may not be in use
        os.chdir(config["cwd"])

    def wait_for_stop() -> None:
        with suppress(Exception):  # the training ended
            ray.get(board.stopped.remote())
            stop_requested.set()

    Thread(target=wait_for_stop, name="wait for stop", daemon=True).start()
    context = ray.train.get_context()
    messages = _Messages(board.write.remote if context.get_world_rank() == 0 else None, config["is_terminal"])
    messages.write(f"training in {context.get_world_size()} processes\n")
    with redirect_stderr(messages), prefix_errors(node):
        warnings.formatwarning = lambda message, *rest, **more: f"warning: {line(str(message))}\n"
        try:
            return pickle.loads(config["work"])()
        except KeyboardInterrupt:
            return None


class _Messages(io.TextIOBase):
    """A stream to the driver's standard error.

    Args:
        send: called with text; None to discard it.
        is_terminal: whether the driver's standard error is one.
    """

    def __init__(self, send: Callable[[str], object] | None, is_terminal: bool) -> None:
        self._send, self._is_terminal = send, is_terminal

    def isatty(self) -> bool:
        """Return whether a bar can be drawn over itself."""
        return self._is_terminal

    def write(self, text: str) -> int:
        """Send text."""
        if self._send is not None and text:
            self._send(text)
        return len(text)
