"""What is in memory once need not be there twice."""

import gc
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_rounded_weights_of_one_block_are_in_memory_at_a_time(checkpointed: bool) -> None:
    torch.manual_seed(0)
    unet = UNet(TINY.unet)
    if checkpointed:
        checkpoint_gradients(unet)
    blocks = checkpointed_blocks(unet)
    shapes = {each.shape for block in blocks for each in block.parameters() if each.ndim > 1}
    x, embeds, pooled = (torch.randn(shape).bfloat16() for shape in ((1, 4, 8, 8), (1, 3, 40), (1, 12)))
    most = [0]

    def count(*_: object) -> None:
        gc.collect()
        there = [each for each in gc.get_objects() if type(each) is Tensor and each.requires_grad]
        rounded = [each for each in there if each.dtype == torch.bfloat16 and each.shape in shapes]
        most[0] = max(most[0], len({each.data_ptr() for each in rounded}))

    for block in blocks:
        block.register_forward_hook(count)
    computing_in(torch.bfloat16, unet)(x, torch.tensor([5.0]), embeds, pooled, torch.ones(1, 6))
    weights = sum(each.ndim > 1 for block in blocks for each in block.parameters())
    if checkpointed:
        assert most[0] < weights / 3
    else:
        assert most[0] >= weights
