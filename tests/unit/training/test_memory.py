"""What is in memory once need not be there twice."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ssd1b.models.unet import UNet
from ssd1b.training.gradient_checkpointing import checkpoint_gradients, checkpointed_blocks
from ssd1b.training.loop import train
from ssd1b.training.precision import computing_in
from ssd1b.training.settings import LoopSettings
from tiny import TINY

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Peeking:
    """Tells how many bytes of the weights the process that reads has."""

    model: nn.Module

    def __getitem__(self, step: int) -> Batch:
        held = sum(each.untyped_storage().nbytes() for each in self.model.parameters())
        return {"x": torch.full((2, 4), float(step)), "held": torch.tensor(held)}


def test_the_process_that_reads_ahead_holds_no_weights(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    held = []

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        held.append(int(batch["held"]))
        return {"loss": model(batch["x"]).square().mean()}

    settings = LoopSettings(steps=3, batch_size=2, learning_rate=1e-3, decay_steps=0)
    trained = train(model, Peeking(model), loss, settings, tmp_path, resume=False, label="test")
    assert held == [0, 0, 0]
    assert all(
        each.isfinite().all() and each.numel() for each in (*model.parameters(), *trained.parameters())
    )


class RoundedWeights(TorchDispatchMode):
    """Remembers, without holding it, the memory of every matrix that is rounded to 16 bits."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = {each.data_ptr() for each in weights if each.ndim > 1}
        self._rounded: list[StorageWeakRef] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self._weights:
            assert out.dtype == torch.bfloat16
            self._rounded.append(StorageWeakRef(out.untyped_storage()))
        return out

    def alive(self) -> int:
        return sum(not each.expired() for each in self._rounded)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_rounded_weights_of_one_block_are_in_memory_at_a_time(checkpointed: bool) -> None:
    torch.manual_seed(0)
    unet = UNet(TINY.unet)
    if checkpointed:
        checkpoint_gradients(unet)
    blocks = checkpointed_blocks(unet)
    weights = [each for block in blocks for each in block.parameters() if each.ndim > 1]
    x, embeds, pooled = (torch.randn(shape).bfloat16() for shape in ((1, 4, 8, 8), (1, 3, 40), (1, 12)))
    alive = []
    for block in blocks:
        block.register_forward_hook(lambda *_: alive.append(rounded.alive()))
    with RoundedWeights(weights) as rounded:
        out = computing_in(torch.bfloat16, unet)(x, torch.tensor([5.0]), embeds, pooled, torch.ones(1, 6))
    largest = max(sum(each.ndim > 1 for each in block.parameters()) for block in blocks)
    assert out.requires_grad and len(alive) == len(blocks)
    if checkpointed:
        assert max(alive) <= largest
    else:
        assert max(alive) == len(weights)
