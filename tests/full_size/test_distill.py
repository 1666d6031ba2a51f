"""SDXL becomes SSD-1B at the published size, on random weights: cut, and one real step of the optimiser."""

import multiprocessing
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ssd1b.distill.losses import Weights
from ssd1b.distill.train import distill, student_of
from ssd1b.layer_map import LayerMap
from ssd1b.layouts import SDXL, SSD_1B
from ssd1b.models.text import Conditioning
from ssd1b.models.unet import UNet
from ssd1b.runtime import choose_dtype
from ssd1b.training.batches import LatentBatch
from ssd1b.training.objective import Objective
from ssd1b.training.settings import LoopSettings

pytestmark = pytest.mark.full_size

MEMORY = 20e9
"""Bytes that the step may take at most, so that a machine with 24 GB does it."""

# Nothing is kept beside weights and gradients but rows and columns.
SETTINGS = LoopSettings(
    steps=1, batch_size=1, optimizer="adafactor", learning_rate=1e-4, ema_decay=0.0, warmup_steps=0,
    decay_steps=0, gradient_checkpointing=True, log_steps=1,
)  # fmt: skip


@contextmanager
def products_in_float32() -> Iterator[None]:
    """Compute products of bfloat16 in float32 and round the results, one operation at a time.

    On a processor without instructions for bfloat16 torch does them in a plain loop, and the step would take
    more than an hour. The tensors that a training keeps are the same.
    """

    def widened(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def product(*args: Any, **kwargs: Any) -> torch.Tensor:
            if args[0].dtype != torch.bfloat16:
                return function(*args, **kwargs)
            return function(*map(wide, args), **{key: wide(each) for key, each in kwargs.items()}).bfloat16()

        return product

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    with pytest.MonkeyPatch.context() as patch:
        for name in ("linear", "conv2d", "scaled_dot_product_attention"):
            patch.setattr(F, name, widened(getattr(F, name)))
        yield


class OneBatch:
    """A picture of 256 x 256 pixels, encoded, with its caption."""

    def __getitem__(self, step: int) -> LatentBatch:
        return LatentBatch(
            latents=torch.randn(1, 4, 32, 32),
            text=Conditioning(torch.randn(1, 77, 2048), torch.randn(1, 1280)),
            time_ids=torch.tensor([[256, 256, 0, 0, 256, 256]]),
            has_caption=torch.tensor([True]),
        )


def random_teacher() -> UNet:
    with torch.device("meta"):
        unet = UNet(SDXL)
    generator = torch.Generator().manual_seed(0)
    weights = {
        # Linear layers and convolutions keep the size of what passes through; norms multiply by one.
        key: (torch.randn(each.shape, generator=generator) / each[0].numel() ** 0.5).bfloat16()
        if each.ndim > 1
        else torch.full(each.shape, float("norm" in key and key.endswith("weight")), dtype=torch.bfloat16)
        for key, each in unet.state_dict().items()
    }
    unet.load_state_dict(weights, assign=True)
    return unet


def cut_and_learn(out: Path) -> None:
    """What the test's own process does."""
    teacher = random_teacher()
    layers = LayerMap.between(SSD_1B, SDXL)
    student = student_of(teacher, layers)
    whole, cut = teacher.state_dict(), student.state_dict()
    assert sum(tensor.numel() for tensor in cut.values()) == 1_331_334_404
    assert all(tensor.equal(whole[layers.keys[key]]) for key, tensor in cut.items())
    del whole, cut

    objective = Objective(text=None, device="cpu", dtype=torch.bfloat16)
    student = student.float()
    name = "up_blocks.0.attentions.0.transformer_blocks.3.ff.net.2.weight"
    before = student.state_dict()[name].clone()
    slow = choose_dtype(None, torch.device("cpu")) != torch.bfloat16
    with products_in_float32() if slow else nullcontext():
        learned = distill(
            out, teacher, student, layers, OneBatch(), objective, settings=SETTINGS, weights=Weights()
        )
    after = learned.state_dict()[name]
    assert after.isfinite().all() and not after.equal(before)


def test_one_step_of_ssd_1b_beside_sdxl_fits_into_20_gb(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=cut_and_learn, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < MEMORY, f"{peak / 1e9:.1f} GB"
    assert (tmp_path / "log.jsonl").read_text()
