"""A cluster of three nodes on this machine, each with one CPU."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssd1b.cluster.connection import connected
from waiting import wait_for

# Before Ray is imported, as ``ssd1b.cluster.connection`` does it.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)

NODES = 3


class Nodes:
    """The cluster, of which nodes can be killed and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.address: str = self._cluster.address
        self._nodes: list[Any] = []
        self.fill()

    def fill(self) -> None:
        """Start nodes until all are there."""
        with pytest.MonkeyPatch.context() as environment:  # of the nodes, and of no other test
            environment.setenv("TORCH_COMPILE_DISABLE", "1")  # compiling takes a minute in each process
            while len(self._nodes) < NODES:
                self._nodes.append(self._cluster.add_node(num_cpus=1, wait=False))

    def are_alone(self) -> bool:
        """Whether Ray counts these nodes: new ones take seconds to join, and killed ones to be missed."""
        import ray

        alive = [each for each in ray.nodes() if each["Alive"] and each["Resources"].get("CPU")]
        return len(alive) == NODES

    def kill(self, number: int) -> None:
        """Kill all processes of a node."""
        self._cluster.remove_node(self._nodes.pop(number), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def all_nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)  # for the fakes
        nodes = Nodes()
        with connected(nodes.address):  # once, because it takes seconds
            yield nodes
        nodes.close()


@pytest.fixture
def nodes(all_nodes: Nodes) -> Nodes:
    all_nodes.fill()
    wait_for(all_nodes.are_alone)
    return all_nodes
