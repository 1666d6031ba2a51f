"""Costs: known counts of multiplications, and every forward pass counted once."""

import pytest
import torch
from torch import nn

from ssd1b.evaluate.cost import count_rows, unet_macs
from ssd1b.layouts import SDXL, SDXL_MINI, SSD_1B
from ssd1b.pipeline import Pipeline


def test_published_sizes_at_1024() -> None:
    """T-GATE's table has 149.4 T for 50 passes of SDXL, without the attention scores' 0.38 T each."""
    sdxl, ssd_1b = unet_macs(SDXL, 128, 128), unet_macs(SSD_1B, 128, 128)
    assert sdxl == pytest.approx(3.381e12, rel=1e-3)
    assert sdxl / ssd_1b == pytest.approx(1.607, rel=1e-3)


def test_rows_are_counted_whatever_the_batch() -> None:
    module = nn.Linear(2, 2)
    with count_rows(module) as batches:
        module(torch.zeros(3, 2))
        module(torch.zeros(5, 2))
    module(torch.zeros(7, 2))
    assert sum(batches) == 8


def test_guidance_doubles_the_passes_but_where_it_is_1() -> None:
    pipeline = Pipeline.load("mini-sdxl", dtype="fp32")
    passes = {}
    for scale in (1.0, 4.0):
        with count_rows(pipeline.unet) as batches:
            pipeline.generate("a cube", seed=1, steps=3, sampler="euler", guidance_scale=scale)
        passes[scale] = sum(batches)
    assert passes == {1.0: 3, 4.0: 6}
    assert unet_macs(SDXL_MINI, 16, 16) > 1e8
