"""Fast training on CPUs: attention kernels, memory layout, compiled blocks."""

import shutil

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssd1b.models.attention import Attention, TransformerBlock, plain_attention
from ssd1b.models.text import TextAttention, TextEncoder


def use_fast_cpu_kernels(model: nn.Module, dtype: torch.dtype, *, compiled: bool = True) -> None:
    """Speed up a UNet's training on a CPU (measurements in docs/log); only last digits of results change.

    Args:
        model: on a CPU; the UNet, or a network that contains one.
        dtype: number format in which it will compute.
        compiled: compile transformer blocks, too.
    """
    compiles = compiled and shutil.which("g++")
    if dtype is torch.float32:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = plain_attention
        # Blocks of one width share a compilation. Convolution blocks take minutes and gain nothing.
        if isinstance(module, TransformerBlock) and compiles and not _is_parametrized(module):
            module.compile()


def _is_parametrized(block: nn.Module) -> bool:
    """Whether a layer is parametrized: it has a class of its own then, so every block would be compiled."""
    return any(parametrize.is_parametrized(each) for each in block.modules())


def use_fast_cpu_text_kernels(encoder: TextEncoder) -> None:
    """Speed up a text encoder's training on a CPU, where the fused backward pass is slow in bfloat16."""
    for module in encoder.modules():
        if isinstance(module, TextAttention):
            module.attend = plain_causal_attention


def plain_causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention as two products and a softmax."""
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return weights.masked_fill(later, float("-inf")).softmax(dim=-1) @ v
