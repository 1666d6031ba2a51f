"""The connection to a Ray cluster."""

import atexit
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from ssd1b.cluster.options import AUTO, LOCAL, ClusterOptions
from ssd1b.errors import InputError, UnavailableError, line, shown
from ssd1b.extras import require
from ssd1b.numerals import counted

_CONNECT_SECONDS = 10.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HTTP2_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # a frame: length, type, flags, stream


@contextmanager
def connected(
    address: str, notify: Callable[[str], object] = lambda message: None
) -> Generator[None, None, None]:
    """Connect to a cluster for the duration of the context, unless this process is connected already.

    A local cluster listens on the loopback only, and asks for a token. Its logs are removed when it ends or
    does not start. No usage statistics are sent.

    Args:
        address: see ``ClusterOptions.address``.
        notify: called with a message that says which cluster was found, if the address does not.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address, or it runs other versions of
            Ray or Python.
    """
    require("--ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    if address == LOCAL:
        # Read when Ray is imported; without it, Ray's processes listen on all interfaces.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        yield
        return
    if ":" in address:
        _check_reachable(address)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with _local_folder() if address == LOCAL else nullcontext() as folder:
        if folder is not None:
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": folder}
        try:
            with _without_warnings(), _own_signals():
                context: Any = ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
            reason = line(str(error)) or type(error).__name__
            raise UnavailableError(f"cannot connect to the Ray cluster {shown(address)}: {reason}") from None
        if address == AUTO:
            notify(f"using the Ray cluster at {context.address_info['gcs_address']}")
        try:
            with _without_messages():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _local_folder() -> Generator[str, None, None]:
    """Make a folder for the logs and sockets of a local cluster, some megabytes that Ray would keep.

    Ray ends processes that it was starting when Python ends, so they may write there until then.
    """
    # The path of a socket has 107 characters at most, of which Ray takes 60.
    folder = tempfile.mkdtemp(prefix="ssd1b-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
    remove = partial(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(remove)
    try:
        yield folder
    finally:
        remove()


@contextmanager
def _own_signals() -> Generator[None, None, None]:
    """Restore the handlers of signals: Ray ends with another code, and its C++ part aborts with its stack."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for each, handler in before.items():
                if handler is not None:  # it was not set by Python
                    signal.signal(each, handler)


@contextmanager
def _without_warnings() -> Generator[None, None, None]:
    """Drop what Ray's C++ code writes to standard error while it connects, a line for each of 20 attempts.

    Its level of logging does not change that. The reason for a failure is in the exception, too.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as unread:
        os.dup2(unread.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _without_messages() -> Generator[None, None, None]:
    """Keep Ray from printing to the standard output that a process ended; ``log_to_driver`` does not."""
    worker: Any = import_module("ray._private.worker")
    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


def _check_reachable(address: str) -> None:
    """Check that a server of HTTP/2 answers, as Ray's does; Ray itself would try for minutes.

    A connection begins with settings of both sides (RFC 9113, section 3.4).
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as connection:
            connection.sendall(_HTTP2_PREFACE + _HTTP2_SETTINGS)
            answer = connection.recv(len(_HTTP2_SETTINGS))
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnavailableError(f"cannot reach the Ray cluster {shown(address)}: {reason}") from None
    if answer[3:4] != _HTTP2_SETTINGS[3:4]:
        raise UnavailableError(f"cannot reach the Ray cluster {shown(address)}: the server there is not Ray")


@dataclass(frozen=True, slots=True)
class Share:
    """The resources that each actor reserves, and the number of actors.

    Attributes:
        cpus: number of CPUs.
        gpus: number of GPUs; several actors may share one.
        actors: as many as were asked for, or as the cluster has room for.
    """

    cpus: float
    gpus: float
    actors: int

    @property
    def of_each(self) -> str:
        """The CPUs and GPUs that each actor reserves, such as "2 CPUs and 1 GPU"."""
        return f"{counted(self.cpus, 'CPU')} and {counted(self.gpus, 'GPU')}"


def divide(options: ClusterOptions) -> Share:
    """Divide the resources of the connected cluster's nodes among actors.

    By default each GPU gets an actor. On a cluster without GPUs, each actor gets as many CPUs as the smallest
    node has.

    Raises:
        InputError: there is no room for one actor, or none for as many as were asked for in a local cluster,
            which no node will join.
    """
    nodes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in _nodes()]
    gpus = options.gpus if options.gpus is not None else float(any(have for _, have in nodes))
    least = min((have for have, _ in nodes if have >= 1), default=1.0)
    cpus = options.cpus if options.cpus is not None else 1.0 if gpus else least
    room = sum(_fitting(have, (cpus, gpus)) for have in nodes)
    share = Share(cpus, gpus, room if options.actors is None else options.actors)
    if room == 0 and (options.actors is None or options.address == LOCAL):
        most_cpus, most_gpus = (max(each, default=0.0) for each in zip(*nodes, strict=True))
        raise InputError(
            f"an actor needs {share.of_each}, but no node of the cluster has more than {most_cpus:g} and "
            f"{most_gpus:g}"
        )
    if options.address == LOCAL and share.actors > room:
        raise InputError(
            f"this machine has room for {room} actors with {share.of_each} each, not for {share.actors}: "
            "--ray-cpus and --ray-gpus set what each needs"
        )
    return share


def _nodes() -> Iterator[dict[str, float]]:
    import ray

    return (node["Resources"] for node in ray.nodes() if node["Alive"])


def _fitting(have: tuple[float, float], need: tuple[float, float]) -> int:
    return int(min(got / one for got, one in zip(have, need, strict=True) if one))
