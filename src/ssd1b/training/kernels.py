"""What a UNet trains fastest with on a CPU: the attention kernel, the memory layout, compiled blocks."""

import shutil

import torch
from torch import Tensor

from ssd1b.models.attention import Attention, TransformerBlock, plain_attention
from ssd1b.models.text import TextAttention, TextEncoder
from ssd1b.models.unet import UNet


def quicken(model: UNet, dtype: torch.dtype) -> None:
    """Choose by measurement (docs/log); results change in the last digits only.

    Args:
        model: on a CPU.
        dtype: in which it will compute.
    """
    if dtype is torch.float32:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = plain_attention
        # Once for all blocks of a width; convolution blocks take minutes to compile and gain nothing.
        if isinstance(module, TransformerBlock) and shutil.which("g++"):
            module.compile()


def quicken_text(encoder: TextEncoder) -> None:
    """Likewise for a text encoder that learns: the fused kernel is slow on its way back in bfloat16."""
    for module in encoder.modules():
        if isinstance(module, TextAttention):
            module.attend = plain_causal_attention


def plain_causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in which no token sees a later one, as two products and a softmax."""
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return weights.masked_fill(later, float("-inf")).softmax(dim=-1) @ v
