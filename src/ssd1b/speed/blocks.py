"""Attention in blocks whose scores stay in the cache, where that is faster than torch's own kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.models.attention import Attention
from ssd1b.runtime import cpu_capabilities
from ssd1b.speed.fusing import FusedSelfAttention

CACHE = 2 * 2**20
"""Bytes of scores for each thread."""

FEW = 256
"""Keys below which there is nothing to divide."""


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``F.scaled_dot_product_attention`` as matrix products and a softmax, some heads and queries at a time.

    Scores are rounded to the number format, which the fused kernel keeps in float32.

    Args:
        q: ``[B, heads, N, head_dim]``.
        k: ``[B, heads, T, head_dim]``.
        v: as ``k``.

    Returns:
        ``[B, heads, N, head_dim]``, heads behind each other in memory for each of the N.
    """
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    if keys < FEW:
        return F.scaled_dot_product_attention(q, k, v)
    threads = torch.get_num_threads()
    group = min(heads, max(2, threads))
    rows = max(64, CACHE * threads // (group * keys * q.element_size()))
    result = q.new_empty(batch, queries, heads, width)
    for picture in range(batch):
        for head in range(0, heads, group):
            chosen = (picture, slice(head, head + group))
            across = (k[chosen] * width**-0.5).transpose(1, 2)
            values = v[chosen].contiguous()
            for row in range(0, queries, rows):
                scores = torch.bmm(q[chosen][:, row : row + rows], across)
                part = torch.bmm(scores.softmax(dim=-1), values)
                result[picture, row : row + rows, head : head + group] = part.transpose(0, 1)
    return result.transpose(1, 2)


def use_blocks(network: nn.Module) -> None:
    """Have a network attend in blocks where the processor is faster so: bfloat16 without AMX's tiles."""
    weight = next(network.parameters())
    able = cpu_capabilities()
    tiles = able.get("amx_bf16") or not able.get("avx512_bf16")
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or tiles:
        return
    for module in network.modules():
        if isinstance(module, Attention | FusedSelfAttention):
            module.attend = blocked_attention
