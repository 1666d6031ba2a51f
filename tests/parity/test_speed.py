"""Prepared networks compute what they did before; other files compare them with diffusers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ssd1b.layouts import CLIP_MINI_2, VAE_MINI
from ssd1b.models.layers import ResnetBlock, Upsample
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.speed import packing
from ssd1b.speed.backends import prepare
from ssd1b.speed.folding import FoldedUpsample
from ssd1b.speed.fusing import FusedSelfAttention, fuse
from ssd1b.speed.packing import PackedConv2d, PackedGEGLU, PackedLinear, pack
from ssd1b.speed.reuse import FeatureReuse
from tiny import LAYOUTS, inputs

needs_operators = pytest.mark.skipif(
    not packing.packing_works(torch.float32), reason="torch has no oneDNN, as on processors other than x86"
)


@pytest.fixture
def everything_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack matrices of any size."""
    monkeypatch.setattr(packing, "SMALLEST", 0)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval().requires_grad_(False)


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@needs_operators
@pytest.mark.usefixtures("everything_packed")
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_a_prepared_unet_predicts_the_same(name: str, size: tuple[int, int]) -> None:
    model = seeded(lambda: UNet(LAYOUTS[name]))
    latents, timesteps, embeds, pooled, time_ids = inputs(LAYOUTS[name], *size)
    embeds[0] = 0.0
    expected = model(latents, timesteps, embeds, pooled, time_ids)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    prepare(model)
    assert relative_error(model(latents, timesteps, embeds, pooled, time_ids), expected) < 1e-5
    read = model.cross_attention_kv(embeds, without_text=1)
    assert relative_error(model(latents, timesteps, read, pooled, time_ids), expected) < 1e-5
    kinds = {type(module) for module in model.modules()}
    assert {PackedConv2d, PackedGEGLU, PackedLinear, FusedSelfAttention} <= kinds
    folded = not name.startswith("mini")  # whose levels have too few channels
    assert (FoldedUpsample in kinds, Upsample in kinds) == (folded, not folded)
    left = [key for key, module in model.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]
    assert all(key.endswith("upsamplers.0.conv") for key in left), "every other product is packed"
    after = model.state_dict()
    assert weights.keys() == after.keys()
    assert all(value.equal(after[key]) for key, value in weights.items())


@needs_operators
@pytest.mark.usefixtures("everything_packed")
def test_packed_companions_do_the_same() -> None:
    vae = seeded(lambda: VAE(VAE_MINI))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 64, 40, generator=generator) * 2 - 1
    mean, _ = vae.encode(pixels)
    decoded, tiled = vae.decode(mean), vae.decode(mean, tile=4)
    text = seeded(lambda: TextEncoder(CLIP_MINI_2))
    ids = torch.randint(0, 1000, (2, 77), generator=generator)
    states, ends = text(ids)
    prepare(vae)
    prepare(text)
    assert relative_error(vae.encode(pixels).mean, mean) < 1e-5
    assert relative_error(vae.decode(mean), decoded) < 1e-5
    assert relative_error(vae.decode(mean, tile=4), tiled) < 1e-5
    again, again_ends = text(ids)
    assert relative_error(again, states) < 1e-5 and relative_error(again_ends, ends) < 1e-5


# In a separate process: torch's compiler cannot trace the tests' runtime type checks.
ONE_GRAPH = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from ssd1b.models.unet import UNet
from ssd1b.speed.fusing import fuse
from tiny import LAYOUTS, inputs
torch.manual_seed(0)
model = UNet(LAYOUTS["ssd-1b"]).eval().requires_grad_(False)
latents, timesteps, embeds, pooled, time_ids = inputs(LAYOUTS["ssd-1b"], 16, 16)
embeds[0] = 0.0
expected = model(latents, timesteps, embeds, pooled, time_ids)
fuse(model)
whole = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
predicted = whole(latents, timesteps, model.cross_attention_kv(embeds, without_text=1), pooled, time_ids)
assert (predicted - expected).norm() / expected.norm() < 1e-5
texts = model.cross_attention_kv(embeds)
pairs = [(k, v, k[:, :, :4], 0.5 * v[:, :, :4]) for k, v in texts.keys_values]
pictures = texts._replace(keys_values=pairs)
expected = model(latents, timesteps, pictures, pooled, time_ids)
predicted = whole(latents, timesteps, pictures, pooled, time_ids)
assert (predicted - expected).norm() / expected.norm() < 1e-5
"""


def test_a_fused_unet_is_one_graph() -> None:
    """A graph break would return to Python within a step."""
    done = subprocess.run([sys.executable, "-c", ONE_GRAPH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_folded_kernels_follow_the_network() -> None:
    model = seeded(lambda: UNet(LAYOUTS["ssd-1b"]))
    fuse(model)
    (folded, *_) = [each for each in model.modules() if isinstance(each, FoldedUpsample)]
    assert folded.phases.weight.dtype == torch.float32
    model.half()
    assert folded.phases.weight.dtype == torch.float16


@pytest.mark.parametrize("channels", [8, 16], ids=["same width", "shortcut"])
def test_a_block_without_gradients_overwrites_only_its_own_maps(channels: int) -> None:
    torch.manual_seed(0)
    block = ResnetBlock(8, channels, groups=4, eps=1e-5, time_channels=12)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 12)
    before = x.clone()
    block(x, embedding).sum().backward()
    assert block.norm1.weight.grad is not None
    expected = block(x, embedding).detach()
    block.requires_grad_(False)
    assert block(x, embedding).equal(expected) and x.equal(before)
    with torch.inference_mode():
        assert block(x, embedding).equal(expected) and x.equal(before)


@needs_operators
def test_convolutions_are_packed_anew_for_maps_of_another_size() -> None:
    own = nn.Conv2d(96, 48, 3, padding=1).requires_grad_(False)
    packed = PackedConv2d(own)
    assert torch.equal(packed.state_dict()["weight"], own.weight)
    for shape in ((2, 96, 4, 4), (2, 96, 16, 16), (1, 96, 16, 16), (2, 96, 4, 4)):
        x, before = torch.randn(shape), packed._packed[1]
        torch.testing.assert_close(packed(x), own(x), rtol=1e-4, atol=1e-4)
        first = packed._packed[1]
        assert first is not before
        packed(x)
        assert packed._packed[1] is first, "once for a size"
        assert torch.equal(packed.state_dict()["weight"], own.weight)


def test_what_cannot_be_packed_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    half = seeded(lambda: VAE(VAE_MINI)).half()
    pack(half)
    assert not any(isinstance(module, PackedConv2d) for module in half.modules())
    with torch.device("meta"):
        pack(elsewhere := VAE(VAE_MINI))
    assert not any(isinstance(module, PackedConv2d) for module in elsewhere.modules())
    monkeypatch.setattr(packing, "PackedConv2d", lambda layer: torch.ops.mkldnn._an_operator_that_went())
    packing.packing_works.cache_clear()
    try:
        assert not packing.packing_works(torch.float32)
    finally:
        packing.packing_works.cache_clear()


@pytest.mark.parametrize("name", LAYOUTS)
def test_deep_features_are_kept_while_shallow_ones_stay(name: str) -> None:
    model = seeded(lambda: UNet(LAYOUTS[name]))
    given = inputs(LAYOUTS[name], 16, 16)
    expected = model(*given)
    asked: list[int] = []
    model.down_blocks[1].resnets[0].register_forward_hook(lambda *_: asked.append(1))
    reuse = FeatureReuse(0.05)
    assert model(*given, None, reuse).equal(expected) and asked == [1]
    assert model(*given, None, reuse).equal(expected) and asked == [1], "nothing moved"
    near, far = (given[0] + share * torch.randn_like(given[0]) for share in (1e-3, 1.0))
    kept = model(near, *given[1:], None, reuse)
    assert asked == [1] and not kept.equal(expected), "the finest level always sees its latents"
    assert relative_error(kept, model(near, *given[1:])) < 0.05
    asked.clear()
    assert model(far, *given[1:], None, reuse).equal(model(far, *given[1:])) and asked == [1, 1]
    assert model(far[:1], *(each[:1] for each in given[1:]), None, reuse).shape[0] == 1, "another batch"
