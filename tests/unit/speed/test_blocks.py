"""Blockwise attention computes what torch's kernel does, and is used on processors where it is faster."""

import pytest
import torch
import torch.nn.functional as F

from ssd1b.models.attention import Attention
from ssd1b.models.unet import UNet
from ssd1b.speed import blocks
from ssd1b.speed.blocks import blocked_attention, use_blocks
from ssd1b.speed.fusing import FusedSelfAttention, fuse
from tiny import LAYOUTS


@pytest.mark.parametrize("shape", [(2, 5, 1024, 64), (1, 1, 700, 64), (1, 3, 300, 16), (2, 2, 64, 8)])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_blocks_compute_the_same(shape, dtype, most, monkeypatch):
    monkeypatch.setattr(blocks, "SCORE_BYTES", 2**18)  # several blocks
    torch.manual_seed(0)
    batch, heads, tokens, width = shape
    q, k, v = torch.randn(batch, tokens, 3, heads, width, dtype=dtype).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    given = blocked_attention(q, k, v)
    assert given.shape == expected.shape and given.dtype == dtype
    assert (given.float() - expected).norm() / expected.norm() < most


@pytest.mark.parametrize(
    ("dtype", "features", "used"),
    [
        (torch.bfloat16, {"avx512_bf16": True}, True),
        (
            torch.bfloat16,
            {"avx512_bf16": True, "amx_bf16": True},
            False,
        ),  # torch's kernel uses AMX and is faster
        (torch.bfloat16, {}, False),
        (torch.float32, {"avx512_bf16": True}, False),
    ],
)
def test_where_attention_is_blockwise(dtype, features, used, monkeypatch):
    monkeypatch.setattr(blocks, "cpu_capabilities", lambda: features)
    with torch.device("cpu"):
        unet = UNet(LAYOUTS["ssd-1b"]).to(dtype)
    fuse(unet)
    use_blocks(unet)
    kernels = {m.attend for m in unet.modules() if isinstance(m, Attention | FusedSelfAttention)}
    assert (kernels == {blocked_attention}) == used
