"""IP-Adapter: a picture as tokens beside the prompt, for which each cross-attention has keys and values.

Ye et al. 2023 (2308.06721). Attribute names are the published keys of the reference implementation
(tencent-ailab/IP-Adapter, ``ip_adapter/ip_adapter.py`` and ``resampler.py``); only the numbers after
``ip_adapter`` are places in the UNet's order of execution here.
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssd1b.layouts import IPAdapterLayout, ResamplerLayout
from ssd1b.models.attention import KeysValues, split_heads

HEAD_DIM = 64
"""Channels per attention head of every published resampler."""


class ImageProjection(nn.Module):
    """The plain kind: one embedding of a picture becomes a few tokens."""

    def __init__(self, layout: IPAdapterLayout) -> None:
        super().__init__()
        self.tokens = layout.tokens
        self.proj = nn.Linear(layout.image_dim, layout.tokens * layout.context_dim)
        self.norm = nn.LayerNorm(layout.context_dim)

    def forward(self, embeds: Tensor) -> Tensor:
        """``[B, image_dim] -> [B, tokens, context_dim]``."""
        return self.norm(self.proj(embeds).unflatten(-1, (self.tokens, -1)))


class _PerceiverAttention(nn.Module):
    """Attention of queries to states and to themselves (Flamingo, 2204.14198)."""

    def __init__(self, layout: ResamplerLayout) -> None:
        super().__init__()
        inner = HEAD_DIM * layout.heads
        self.norm1 = nn.LayerNorm(layout.channels)
        self.norm2 = nn.LayerNorm(layout.channels)
        self.to_q = nn.Linear(layout.channels, inner, bias=False)
        self.to_kv = nn.Linear(layout.channels, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, layout.channels, bias=False)

    def forward(self, states: Tensor, queries: Tensor) -> Tensor:
        """``[B, T, C], [B, N, C] -> [B, N, C]``."""
        states, queries = self.norm1(states), self.norm2(queries)
        k, v = self.to_kv(torch.cat([states, queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(each, HEAD_DIM) for each in (self.to_q(queries), k, v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """The kind "plus": learned queries read all states of the image encoder."""

    def __init__(self, layout: IPAdapterLayout, resampler: ResamplerLayout) -> None:
        super().__init__()
        channels = resampler.channels
        self.latents = nn.Parameter(torch.zeros(1, layout.tokens, channels))
        self.proj_in = nn.Linear(layout.image_dim, channels)
        self.proj_out = nn.Linear(channels, layout.context_dim)
        self.norm_out = nn.LayerNorm(layout.context_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([_PerceiverAttention(resampler), _perceptron(resampler)])
            for _ in range(resampler.layers)
        )

    def forward(self, states: Tensor) -> Tensor:
        """``[B, T, image_dim] -> [B, tokens, context_dim]``."""
        x = self.proj_in(states)
        queries = self.latents.expand(len(x), -1, -1)
        for attention, perceptron in (cast(nn.ModuleList, each) for each in self.layers):
            queries = queries + attention(x, queries)
            queries = queries + perceptron(queries)
        return self.norm_out(self.proj_out(queries))


def _perceptron(layout: ResamplerLayout) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(layout.channels),
        nn.Linear(layout.channels, layout.intermediate_size, bias=False),
        nn.GELU(),
        nn.Linear(layout.intermediate_size, layout.channels, bias=False),
    )


class IPAdapter(nn.Module):
    """Network that turns a picture, as its encoder sees it, into keys and values for a UNet."""

    def __init__(self, layout: IPAdapterLayout) -> None:
        super().__init__()
        self.layout = layout
        self.image_proj = (
            ImageProjection(layout) if layout.resampler is None else Resampler(layout, layout.resampler)
        )
        self.ip_adapter = nn.ModuleList(
            nn.ModuleDict({
                name: nn.Linear(layout.context_dim, channels, bias=False) for name in ("to_k_ip", "to_v_ip")
            })
            for channels in layout.blocks
        )  # fmt: skip

    def forward(self, embeds: Float[Tensor, "batch *tokens image_dim"]) -> list[KeysValues]:
        """Return keys and values for each transformer block of the UNet, in execution order.

        Args:
            embeds: what the image encoder returns: its embedding, or with a resampler its ``states``.
        """
        tokens = self.image_proj(embeds)
        blocks = (cast(nn.ModuleDict, each) for each in self.ip_adapter)
        return [
            (
                split_heads(block["to_k_ip"](tokens), self.layout.head_dim),
                split_heads(block["to_v_ip"](tokens), self.layout.head_dim),
            )
            for block in blocks
        ]
