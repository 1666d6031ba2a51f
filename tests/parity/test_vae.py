"""The VAE against diffusers on the same weights, whole and in tiles, and its promise never to return NaN."""

import warnings

import pytest
import torch
from diffusers import AutoencoderKL

from ssd1b.layouts import VAELayout
from ssd1b.models.vae import VAE, UndecodableLatents

LAYOUT = VAELayout(channels=(16, 24, 32, 32), layers_per_block=2, norm_groups=8)


def diffusers_vae(layout: VAELayout) -> AutoencoderKL:
    levels = len(layout.channels)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=layout.channels,
        layers_per_block=layout.layers_per_block,
        norm_num_groups=layout.norm_groups,
        scaling_factor=layout.scaling_factor,
    )


@pytest.fixture(scope="module")
def pair() -> tuple[VAE, AutoencoderKL]:
    torch.manual_seed(0)
    oracle = diffusers_vae(LAYOUT).eval()
    model = VAE(LAYOUT).eval()
    model.load_state_dict(oracle.state_dict(), strict=True)
    return model.requires_grad_(False), oracle.requires_grad_(False)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_encode(pair: tuple[VAE, AutoencoderKL]) -> None:
    model, oracle = pair
    pixels = torch.rand(2, 3, 40, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    distribution = oracle.encode(pixels).latent_dist
    mean, std = model.encode(pixels)
    assert relative_error(mean, distribution.mean * LAYOUT.scaling_factor) < 1e-5
    assert relative_error(std, distribution.std * LAYOUT.scaling_factor) < 1e-5


def test_decode(pair: tuple[VAE, AutoencoderKL]) -> None:
    model, oracle = pair
    latents = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(2))
    expected = oracle.decode(latents / LAYOUT.scaling_factor).sample
    assert relative_error(model.decode(latents), expected) < 1e-5


def test_tiled_decode_is_as_near_to_the_whole_as_diffusers(pair: tuple[VAE, AutoencoderKL]) -> None:
    model, oracle = pair
    # Smooth latents: of white noise the group norms, which see one tile at a time, have little in common.
    coarse = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(3))
    latents = torch.nn.functional.interpolate(coarse, size=(24, 31), mode="bicubic")
    whole = model.decode(latents)
    oracle.enable_tiling()
    oracle.tile_latent_min_size, oracle.tile_sample_min_size = 12, 96
    theirs = relative_error(oracle.decode(latents / LAYOUT.scaling_factor).sample, whole)
    oracle.disable_tiling()
    ours = relative_error(model.decode(latents, tile=12), whole)
    assert ours <= 1.1 * theirs
    assert model.decode(latents, tile=31).equal(whole)


def test_overflow_is_decoded_again_in_float32_and_said() -> None:
    torch.manual_seed(0)
    reference = VAE(LAYOUT).requires_grad_(False)
    # One convolution scaled up: finite in float32, beyond float16's largest number, 65,504.
    reference.decoder.conv_in.weight.mul_(1e6)
    model = VAE(LAYOUT).requires_grad_(False)
    model.load_state_dict({k: v.clamp(-6e4, 6e4) for k, v in reference.state_dict().items()})
    model.half()
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    with pytest.warns(RuntimeWarning, match="float32"):
        pixels = model.decode(latents)
    assert pixels.isfinite().all()
    assert model.post_quant_conv.weight.dtype == torch.float16


def test_broken_latents_are_an_error_not_a_black_picture(pair: tuple[VAE, AutoencoderKL]) -> None:
    latents = torch.full((1, 4, 4, 4), float("nan"))
    with warnings.catch_warnings(), pytest.raises(UndecodableLatents):
        pair[0].decode(latents)


def test_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        expected = diffusers_vae(VAELayout()).state_dict()
        actual = VAE(VAELayout()).state_dict()
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}
