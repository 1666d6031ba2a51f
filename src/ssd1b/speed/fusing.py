"""Fusion of layers: self-attention's projections, and upsampling with its convolution."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ssd1b.models.attention import Attention, TransformerBlock
from ssd1b.models.layers import Upsample
from ssd1b.speed.folding import FoldedUpsample

_FOLDED_CHANNELS = 64
"""Upsamplings with a multiple of this many channels are folded. On a CPU four kernels took 1.3 to 12 times as
long with 48, 96 or 160 channels, and a fifth to two thirds of the time with 64 to 1280 (docs/log)."""

_PROJECTIONS = ("to_q", "to_k", "to_v")


class FusedSelfAttention(nn.Module):
    """Self-attention whose queries, keys and values are computed by one product."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.head_dim, self.attend, self.to_out = layer.head_dim, layer.attend, layer.to_out
        weights: list[Tensor] = [layer.get_parameter(f"{name}.weight") for name in _PROJECTIONS]
        self.to_qkv = nn.Linear(weights[0].shape[1], 3 * len(weights[0]), bias=False, device="meta")
        self.to_qkv.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        self.register_state_dict_post_hook(_split_qkv_keys)
        self.register_load_state_dict_pre_hook(_join_qkv_keys)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, C]``."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        return self.to_out[0](self.attend(q, k, v).transpose(1, 2).flatten(2))


def _split_qkv_keys(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Restore the published names of the weights."""
    weights = state.pop(f"{prefix}to_qkv.weight").chunk(3)
    state |= {f"{prefix}{name}.weight": part for name, part in zip(_PROJECTIONS, weights, strict=True)}


def _join_qkv_keys(module: nn.Module, state: dict[str, Tensor], prefix: str, *others: object) -> None:
    """Join weights under their published names, all three or none; see ``with_fused``."""
    names = [f"{prefix}{name}.weight" for name in _PROJECTIONS]
    if names[0] in state:
        state[f"{prefix}to_qkv.weight"] = torch.cat([state.pop(name) for name in names])


def with_fused(names: Iterable[str]) -> set[str]:
    """Add the names of the weights that are fused with those given, since only all of them can be loaded."""
    found = set(names)
    for name in list(found):
        module, _, leaf = name.removesuffix(".weight").rpartition(".")
        if leaf in _PROJECTIONS and module.endswith(".attn1"):
            found |= {f"{module}.{other}.weight" for other in _PROJECTIONS}
    return found


def fuse(network: nn.Module) -> None:
    """Replace layers by fused ones, in place. Inference only afterwards.

    Self-attention's three projections become one, and upsampling is folded into its convolution.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Upsample) and child.conv.in_channels % _FOLDED_CHANNELS == 0:
                module.add_module(name, FoldedUpsample(child).eval())
        if isinstance(module, TransformerBlock):
            module.add_module("attn1", FusedSelfAttention(module.attn1).eval())
