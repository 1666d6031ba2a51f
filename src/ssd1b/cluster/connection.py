"""The connection to a Ray cluster."""

import logging
import os
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ssd1b.cluster.options import LOCAL, ClusterOptions
from ssd1b.errors import InputError, UnavailableError, line, shown
from ssd1b.extras import require

_CONNECT_SECONDS = 10.0


@contextmanager
def connected(address: str) -> Generator[None, None, None]:
    """Connect to a cluster for the duration of the context, unless this process is connected already.

    A local cluster listens on the loopback only, and asks for a token. No usage statistics are sent.

    Args:
        address: see ``ClusterOptions.address``.

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
    if address == LOCAL:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        reason = line(str(error)) or type(error).__name__
        raise UnavailableError(f"cannot connect to the Ray cluster {shown(address)}: {reason}") from None
    try:
        with _without_messages():
            yield
    finally:
        ray.shutdown()


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
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnavailableError(f"cannot reach the Ray cluster {shown(address)}: {reason}") from None


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


def divide(options: ClusterOptions) -> Share:
    """Divide the resources of the connected cluster's nodes among actors.

    By default each GPU gets an actor. On a cluster without GPUs, each actor gets as many CPUs as the smallest
    node has.

    Raises:
        InputError: no node has enough for one actor, and no number of actors was given.
    """
    nodes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in _nodes()]
    gpus = options.gpus if options.gpus is not None else float(any(have for _, have in nodes))
    least = min((have for have, _ in nodes if have >= 1), default=1.0)
    cpus = options.cpus if options.cpus is not None else 1.0 if gpus else least
    room = sum(_fitting(have, (cpus, gpus)) for have in nodes)
    if room == 0 and options.actors is None:
        most_cpus, most_gpus = (max(each, default=0.0) for each in zip(*nodes, strict=True))
        raise InputError(
            f"an actor needs {cpus:g} CPUs and {gpus:g} GPUs, but no node of the cluster has more than "
            f"{most_cpus:g} and {most_gpus:g}"
        )
    return Share(cpus, gpus, room if options.actors is None else options.actors)


def _nodes() -> Iterator[dict[str, float]]:
    import ray

    return (node["Resources"] for node in ray.nodes() if node["Alive"])


def _fitting(have: tuple[float, float], need: tuple[float, float]) -> int:
    return int(min(got / one for got, one in zip(have, need, strict=True) if one))
