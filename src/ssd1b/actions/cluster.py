"""The executor of a use case whose images a Ray cluster generates."""

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial

from ssd1b.actions.loading import Loading
from ssd1b.cluster.actor import Open, check_local, choose_platform
from ssd1b.cluster.connection import connected
from ssd1b.cluster.executor import ClusterExecutor
from ssd1b.cluster.options import ClusterOptions
from ssd1b.jobs.executor import Result


@contextmanager
def cluster_executor(
    options: ClusterOptions, loading: Loading, open_model: Callable[[str, Loading], Open[Result]]
) -> Generator[ClusterExecutor[Result], None, None]:
    """Connect to a cluster, and wait for the first actor.

    Args:
        options: of the cluster.
        loading: how models are found and loaded.
        open_model: ``open_model(name, there)`` returns what loads a model on a node, with the options
            ``there``.

    Raises:
        InputError: the cluster cannot be reached or has no room, or its nodes differ, or lack the package or
            the device.
    """
    there = replace(loading, cluster=None, notify=_quiet)
    choose = partial(choose_platform, loading.device, loading.dtype)
    check_local(options, choose)
    with (
        connected(options.address, loading.notify),
        closing(
            ClusterExecutor(options, choose, lambda name: open_model(name, there), loading.notify)
        ) as executor,
    ):
        executor.platform()
        yield executor


def _quiet(message: str) -> None:
    """Discard a message. Output of cluster nodes is not shown."""
