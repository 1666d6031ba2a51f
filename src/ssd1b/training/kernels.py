"""Fast training on CPUs: attention kernels, memory layout, compiled blocks."""

import shutil
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssd1b.models.attention import Attention, TransformerBlock, plain_attention
from ssd1b.models.text import TextAttention, TextEncoder
from ssd1b.training.settings import LoopSettings

COMPILED_STEPS = 200
"""Fewest steps for which faster steps on a CPU pay for the compiler's minutes."""

COMPILING = "compiling the blocks, once: the first steps take minutes, the others are faster for it"
"""Said before a training whose first steps compile."""


def speed_up(
    teacher: nn.Module, learning: Iterable[nn.Module], dtype: torch.dtype, settings: LoopSettings,
    notify: Callable[[str], None],
) -> None:  # fmt: skip
    """Speed up a teacher and what learns from it on a CPU; compile if there are enough steps to pay for it.

    Args:
        teacher: a frozen UNet on a CPU.
        learning: the trained networks, on a CPU. With gradient checkpointing they stay as they are: a
            compiled block cannot be recomputed.
        dtype: number format in which all will compute.
        settings: of the run.
        notify: called with a message if the first steps will compile.
    """
    worthwhile = settings.steps >= COMPILED_STEPS
    networks = (teacher, *(() if settings.gradient_checkpointing else learning))
    if any([use_fast_cpu_kernels(each, dtype, compiled=worthwhile) for each in networks]):
        notify(COMPILING)


def use_fast_cpu_kernels(model: nn.Module, dtype: torch.dtype, *, compiled: bool = True) -> bool:
    """Speed up a UNet's training on a CPU (measurements in docs/log); only last digits of results change.

    Args:
        model: on a CPU; the UNet, or a network that contains one.
        dtype: number format in which it will compute.
        compiled: compile transformer blocks, too, if there is a compiler.

    Returns:
        Whether blocks will be compiled when they first run.
    """
    compiles = compiled and shutil.which("g++") is not None
    will_compile = False
    if dtype is torch.float32:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = plain_attention
        # Blocks of one width share a compilation. Convolution blocks take minutes and gain nothing.
        if isinstance(module, TransformerBlock) and compiles and not _is_parametrized(module):
            module.compile()
            will_compile = True
    return will_compile


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
