"""The workers of a server in the actors of a Ray cluster."""

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from ssd1b.actions.loading import check_model
from ssd1b.cluster.actor import Platform, check_local, choose_platform
from ssd1b.cluster.connection import connected, divide
from ssd1b.cluster.options import ClusterOptions
from ssd1b.cluster.serving import ClusterWorker, probe
from ssd1b.errors import ConflictError, shown
from ssd1b.files import hash_file
from ssd1b.jobs.session import Progress
from ssd1b.model import Model
from ssd1b.runtime import DTYPES
from ssd1b.saving import check_folder
from ssd1b.server.options import ServerOptions
from ssd1b.server.workers import StartWorker

log = logging.getLogger("ssd1b.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """The workers of a service on a cluster; arguments of ``Service``.

    Attributes:
        start: makes a worker.
        most: the number of workers.
        platform: what they generate on.
    """

    start: StartWorker
    most: int
    platform: tuple[torch.device, torch.dtype]


@contextmanager
def replicas(options: ServerOptions, cluster: ClusterOptions) -> Generator[Replicas, None, None]:
    """Connect to a cluster, and look at what it offers.

    Raises:
        InputError: there is no such model; or the cluster cannot be reached, has no room, or its nodes lack
            the package or the device.
    """
    # Before the cluster, which takes half a minute to start.
    check_folder(options.folder)
    for model in options.models.values():
        check_model(model)
    choose = partial(choose_platform, options.device, options.dtype)
    check_local(cluster, choose)
    with connected(cluster.address, log.info):
        share = divide(cluster)
        found = probe(share, choose)
        expected = cache(partial(_digest, offline=options.offline, prediction=options.prediction))

        def begin(
            model: str, loading: Mapping[str, Any], report: Callable[[Progress], object]
        ) -> ClusterWorker:
            check = partial(
                _check, found, choose, model, expected(model), options.offline, options.prediction
            )
            return ClusterWorker(share, check, model, loading, report)

        yield Replicas(
            start=begin, most=share.actors, platform=(torch.device(found.device), DTYPES[found.dtype])
        )


def _digest(model: str, *, offline: bool, prediction: str | None) -> str:
    return Model.find(model, offline=offline, prediction=prediction).digest(hash_file)


def _check(
    expected: Platform, choose: Callable[[], Platform], model: str, digest: str, offline: bool,
    prediction: str | None,
) -> Platform:  # fmt: skip
    """Check that a node generates the same images as the others; called there."""
    if (found := choose()) != expected:
        raise ConflictError(
            f"it generates on {found.device} in {found.dtype}, others on {expected.device} in "
            f"{expected.dtype}: choose with --device and --dtype"
        )
    if _digest(model, offline=offline, prediction=prediction) != digest:
        raise ConflictError(f"the files of {shown(model)} are not those of the server's machine")
    return found
