"""Blockwise attention whose scores stay in the cache, for processors on which torch's kernel is slower."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.models.attention import Attention
from ssd1b.runtime import cpu_capabilities
from ssd1b.speed.fusing import FusedSelfAttention

SCORE_BYTES = 2 * 2**20
"""Bytes of scores per thread."""

MIN_KEYS = 256
"""Keys from which attention is computed in blocks."""


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute ``F.scaled_dot_product_attention`` for a few heads and queries at a time.

    Scores are rounded to the inputs' dtype, unlike in torch's fused kernel, which keeps them in float32.

    Args:
        q: ``[B, heads, N, head_dim]``.
        k: ``[B, heads, T, head_dim]``.
        v: as ``k``.

    Returns:
        ``[B, heads, N, head_dim]``; in memory, the heads of each query are adjacent.
    """
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    if keys < MIN_KEYS:
        return F.scaled_dot_product_attention(q, k, v)
    threads = torch.get_num_threads()
    group = min(heads, max(2, threads))
    rows = max(64, SCORE_BYTES * threads // (group * keys * q.element_size()))
    result = q.new_empty(batch, queries, heads, width)
    for image in range(batch):
        for head in range(0, heads, group):
            heads_of_image = (image, slice(head, head + group))
            scaled_keys = (k[heads_of_image] * width**-0.5).transpose(1, 2)
            values = v[heads_of_image].contiguous()
            for row in range(0, queries, rows):
                scores = torch.bmm(q[heads_of_image][:, row : row + rows], scaled_keys)
                block = torch.bmm(scores.softmax(dim=-1), values)
                result[image, row : row + rows, head : head + group] = block.transpose(0, 1)
    return result.transpose(1, 2)


def use_blocks(network: nn.Module) -> None:
    """Use blockwise attention where it is faster: in bfloat16 on a CPU with AVX512-BF16 but no AMX."""
    weight = next(network.parameters())
    features = cpu_capabilities()
    faster = features.get("avx512_bf16") and not features.get("amx_bf16")
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not faster:
        return
    for module in network.modules():
        if isinstance(module, Attention | FusedSelfAttention):
            module.attend = blocked_attention
