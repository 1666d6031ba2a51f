"""Options of a cluster; no torch and no Ray."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from ssd1b.errors import InputError, shown
from ssd1b.numerals import counted
from ssd1b.validation import Name, Range, validated

LOCAL = "local"
"""Starts a cluster on this machine, which ends with the process."""

AUTO = "auto"
"""The cluster that this machine belongs to."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Which Ray cluster to use, and how its resources are divided.

    Attributes:
        address: ``HOST:PORT`` of the head node, "auto" for the cluster that this machine belongs to, or
            "local" for a new one on this machine.
        actors: number of actors. Each keeps a model loaded and generates one batch at a time. Those without
            room wait for it. None for as many as there is room for, also later.
        gpus: GPUs that each actor reserves; 0.5 lets two share one. Ray does not divide their memory. None
            for one if the cluster has GPUs.
        cpus: CPUs that each actor reserves. None for one beside a GPU, otherwise for all of a node.

    Raises:
        InputError: a value is out of range.
    """

    address: Name
    actors: Annotated[int, Range(1, 100_000)] | None = None
    gpus: Annotated[float, Range(0, 64)] | None = None
    cpus: Annotated[float, Range(0.01, 4096)] | None = None

    def __post_init__(self) -> None:
        """Check the address and fractions, as Ray would later."""
        if "://" in self.address:
            raise InputError(
                f"address is {shown(self.address)}: run the command on a machine of the cluster, and give "
                "HOST:PORT, auto or local"
            )
        if self.address not in (LOCAL, AUTO) and ":" not in self.address:
            raise InputError(f"address is {shown(self.address)}: allowed are HOST:PORT, auto and local")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise InputError(f"gpus is {self.gpus}: allowed are fractions below 1 and whole numbers")
        if self.address == LOCAL and (self.cpus or 0) > (have := os.cpu_count() or 1):
            raise InputError(f"cpus is {self.cpus:g}: this machine has {counted(have, 'CPU')}")


@contextmanager
def option_names(ray: str, separator: str) -> Generator[None, None, None]:
    """Let errors of ``ClusterOptions`` name the options as users write them.

    Args:
        ray: the option of the address, such as "--ray".
        separator: what the names of the other options have behind it: "-" for "--ray-cpus".
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        named = text.removeprefix("address") if text.startswith("address ") else f"{separator}{text}"
        raise type(error)(f"{ray}{named}") from None
