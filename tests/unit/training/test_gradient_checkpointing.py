"""Gradient checkpointing: less is kept, and nothing else changes."""

import copy

import pytest
import torch
from torch import Tensor

from ssd1b.distill.features import capture_outputs
from ssd1b.models.unet import UNet
from ssd1b.training.gradient_checkpointing import checkpoint_gradients
from ssd1b.training.precision import computing_in
from tiny import TINY

INNER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


def gradients(unet: UNet, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of a loss that also looks at a feature inside a block."""
    unet.zero_grad()
    generator = torch.Generator().manual_seed(1)
    latents, embeds, pooled = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((1, 4, 8, 8), (1, 3, 40), (1, 12))
    )
    with capture_outputs(unet, [INNER]) as features:
        out = computing_in(dtype, unet)(latents, torch.tensor([500.0]), embeds, pooled, torch.ones(1, 6))
    (out.float().square().mean() + features[INNER].float().square().mean()).backward()
    return {name: parameter.grad for name, parameter in unet.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_the_same_to_the_bit_and_blocks_run_twice(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    unet = UNet(TINY.unet)
    expected = gradients(unet, dtype)
    saving = copy.deepcopy(unet)
    checkpoint_gradients(saving)
    runs = []
    saving.get_submodule(f"{INNER}.to_q").register_forward_hook(lambda *_: runs.append(1))
    actual = gradients(saving, dtype)
    assert len(runs) == 2
    assert actual.keys() == expected.keys()
    assert all(actual[name].equal(gradient) for name, gradient in expected.items())


def test_a_copy_computes_with_its_own_weights() -> None:
    torch.manual_seed(0)
    unet = UNet(TINY.unet)
    checkpoint_gradients(unet)
    average = copy.deepcopy(unet)
    inputs = (
        torch.randn(1, 4, 8, 8),
        torch.tensor([500.0]),
        torch.randn(1, 3, 40),
        torch.randn(1, 12),
        torch.ones(1, 6),
    )
    with torch.no_grad():
        before = average(*inputs)
        for parameter in unet.parameters():
            parameter.zero_()
        assert before.any() and average(*inputs).equal(before)
