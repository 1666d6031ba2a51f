"""A training for the processes of a cluster, small enough to follow. Every node can import it."""

import os
import time
from pathlib import Path

import torch
from torch import distributed

from ssd1b.errors import NotFoundError
from ssd1b.training.loop import stop_requested

STEPS = 12


def count(folder: Path, seconds: float = 0.0) -> tuple[int, int]:
    """Add one in each process and step, and save the sum; continue with the last sum.

    Each process writes its id into ``folder``.

    Returns:
        The number of processes and the sum.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    with (folder / f"ids.{rank}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    start = len(saved(folder))
    distributed.barrier()
    total = torch.tensor(world * start)
    for step in range(start, STEPS):
        time.sleep(seconds)
        one = torch.tensor(1)
        distributed.all_reduce(one)
        total += one
        if rank == 0:
            (folder / f"step-{step}").write_text(str(int(total)))
        stop = torch.tensor(int(stop_requested.is_set()))
        distributed.all_reduce(stop)
        if stop:
            raise KeyboardInterrupt
    return world, int(total)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def refuse(rank: int) -> None:
    """Lack something in one process, while the others wait for it."""
    if distributed.get_rank() == rank:
        raise NotFoundError("no such model: 'gone'")
    distributed.barrier()


def stages_toml(student: str, steps: int) -> str:
    """Return the stages of a short distillation in two micro-batches, with a checkpoint after each step."""
    return f"""
[train]
steps = {steps}
batch_size = 2
micro_batches = 2
learning_rate = 1e-3
warmup_steps = 0
checkpoint_steps = 1
[[stages]]
student = "{student}"
features = "block"
"""
