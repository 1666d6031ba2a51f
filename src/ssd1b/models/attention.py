"""The UNet's transformer blocks: self-attention over cells, cross-attention to the text, feed-forward."""

from collections.abc import Callable, Iterator
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues: TypeAlias = tuple[Tensor, ...]
"""Keys and values of a context, each ``[B, heads, T, head_dim]``. If B is less than the number of images, the
first images have no text. Further pairs after them are of pictures (IP-Adapter), for all images; attention to
each of them is added."""


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017), to ``context`` if given and otherwise to itself.

    ``attend`` is the kernel, ``(q, k, v) -> [B, heads, N, head_dim]``, which can be replaced per module.
    """

    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(F.scaled_dot_product_attention)

    def __init__(
        self, channels: int, *, head_dim: int, context_channels: int | None = None, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        context_channels = channels if context_channels is None else context_channels
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, channels, bias=qkv_bias)
        self.to_k = nn.Linear(context_channels, channels, bias=qkv_bias)
        self.to_v = nn.Linear(context_channels, channels, bias=qkv_bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | KeysValues | None = None) -> Tensor:
        """``x`` ``[B, N, C]``, ``context`` ``[B, T, D]`` or its keys and values -> ``[B, N, C]``."""
        if not isinstance(context, tuple):
            context = self.keys_values(x if context is None else context)
        k, v, *pictures = context
        without_text = len(x) - len(k)
        q = split_heads(self.to_q(x[without_text:]), self.head_dim)
        attended = self.attend(q, k, v)
        for k, v in zip(pictures[::2], pictures[1::2], strict=True):
            attended = attended + self.attend(q, k, v)
        attended = self.to_out[0](attended.transpose(1, 2).flatten(2))
        if not without_text:
            return attended
        # Projections without a bias keep zeros, so attention to no text is the output's bias.
        bias = cast(nn.Linear, self.to_out[0]).bias
        return torch.cat([bias.expand(without_text, *x.shape[1:]), attended])

    def keys_values(self, context: Tensor) -> KeysValues:
        """Project a context ``[B, T, D]`` to keys and values, which steps with the same text share."""
        k, v = self.to_k(context), self.to_v(context)
        return split_heads(k, self.head_dim), split_heads(v, self.head_dim)


def split_heads(tokens: Tensor, head_dim: int) -> Tensor:
    """``[B, N, C] -> [B, C / head_dim, N, head_dim]``."""
    return tokens.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention as two matrix products and a softmax, ``[B, heads, N, head_dim]``.

    On a CPU, in bfloat16 and at the miniature's token counts, it trains faster than the fused kernel, which
    has a slow backward pass there.
    """
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return weights.softmax(dim=-1) @ v


class GEGLU(nn.Module):
    """Gated linear unit with GELU (Shazeer 2020, 2002.05202)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, out_channels]``."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU of four times the width, then a linear layer back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Index 1 stands for diffusers' dropout, so that the published key is net.2.
        self.net = nn.ModuleList(
            [GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, C]``."""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised before and added to its input."""

    def __init__(self, channels: int, *, head_dim: int, context_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, head_dim=head_dim)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, head_dim=head_dim, context_channels=context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor | KeysValues) -> Tensor:
        """``x`` ``[B, N, C]``, ``context`` ``[B, T, D]`` or its keys and values -> ``[B, N, C]``."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """``depth`` transformer blocks over the cells of a feature map, with a residual connection."""

    def __init__(
        self, channels: int, depth: int, *, head_dim: int, context_channels: int, groups: int
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, head_dim=head_dim, context_channels=context_channels)
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, contexts: Iterator[Tensor | KeysValues]) -> Tensor:
        """``x`` ``[B, C, H, W]`` -> ``[B, C, H, W]``; takes one of ``contexts`` for each block."""
        height, width = x.shape[-2:]
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # [B, H*W, C]
        for block in self.transformer_blocks:
            tokens = block(tokens, next(contexts))
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, (height, width))
