"""Training of the miniature's autoencoder on renders."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssd1b.layouts import VAE_MINI
from ssd1b.models.attention import Attention
from ssd1b.models.layers import ResnetBlock
from ssd1b.models.vae import VAE
from ssd1b.tabletop.world.renderer import render, render_batch
from ssd1b.tabletop.world.scenes import PLAIN, WORLDS, World, scene
from ssd1b.tensors import Pixels, from_levels
from ssd1b.training.loop import train
from ssd1b.training.precision import computing_in, training_dtype
from ssd1b.training.settings import LoopSettings

SETTINGS = LoopSettings(
    steps=3000, batch_size=32, learning_rate=1.5e-3, muon_rate=0.02, decay_steps=2000, warmup_steps=20,
    betas=(0.9, 0.99), weight_decay=1e-4, ema_decay=0.995, checkpoint_steps=100,
)  # fmt: skip
DECODER_SETTINGS = LoopSettings(
    steps=500, batch_size=32, learning_rate=3e-4, muon_rate=0.004, decay_steps=450, warmup_steps=20,
    betas=(0.9, 0.99), weight_decay=1e-4, ema_decay=0.98, checkpoint_steps=100,
)  # fmt: skip
LATENT_NOISE = 0.25
"""Largest noise in the decoder's training, in standard deviations of the latents."""

CROP = 64
"""Side of the crops. The network is convolutional: a quarter of the image at a quarter of the cost."""

PER_PICTURE = 4
"""Number of crops from each image."""

KL_WEIGHT = 1e-6
"""Rombach et al. 2022, appendix G. Larger ones let latent channels collapse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crops:
    """Random crops of renders, several per image, since rendering costs more than cropping.

    The crop is the one with the most contrast of ``choices`` windows: most of an image is plain table, which
    is learned quickly.
    """

    batch_size: int
    per_picture: int = PER_PICTURE
    choices: int = 3
    seed: int = 0
    world: World = PLAIN

    def __getitem__(self, step: int) -> Tensor:
        """Return the crops of a step, ``[batch_size, 3, CROP, CROP]``, uint8."""
        rng = np.random.default_rng((self.seed, step))
        crops = []
        for index in range(self.batch_size // self.per_picture):
            picture = render(scene(self.seed, step * self.batch_size + index, world=self.world))
            for _ in range(self.per_picture):
                corners = rng.integers(0, picture.shape[0] - CROP + 1, (self.choices, 2))
                windows = (picture[top : top + CROP, left : left + CROP] for top, left in corners)
                crops.append(max(windows, key=np.std))
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


class Reconstruction(nn.Module):
    """The whole autoencoder as one module: encode, sample, decode."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decoded pixels, and mean and log-variance of the unscaled latents."""
        vae = self.vae
        mean, log_variance = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return vae.decoder(vae.post_quant_conv(latents)), mean, log_variance


class Decoding(nn.Module):
    """The decoder for unscaled latents."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        """Decode unscaled latents to pixels."""
        return self.decoder(self.post_quant_conv(latents))


def train_vae(
    out: Path, *, start: VAE | None = None, settings: LoopSettings = SETTINGS, world: str = "plain",
    resume: bool = False, device: str = "cpu",
) -> VAE:  # fmt: skip
    """Train an autoencoder, normalise its latents, then train the decoder alone on noisy latents.

    The trained autoencoder's latents have mean 0 and variance 1 per channel, so its scaling factor is 1.

    Args:
        out: folder of the run.
        start: an autoencoder to finetune; None creates a new one.
        settings: of the first training.
        world: a key of ``WORLDS``.
        resume: continue the run in ``out``.
        device: to train on.
    """
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)
    data = Crops(batch_size=settings.batch_size, seed=settings.seed, world=WORLDS[world])
    model = Reconstruction(start or initialised(VAE(VAE_MINI))).to(device)

    def loss(module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        # Channels last is the faster layout for convolutions in 16 bits.
        pixels = from_levels(batch.to(device, memory_format=torch.channels_last))
        decoded, mean, log_variance = (t.float() for t in computing_in(dtype, module)(pixels.to(dtype)))
        terms = _differences(decoded, pixels)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=(1, 2, 3)).mean()
        return {**terms, "loss": terms["loss"] + KL_WEIGHT * divergence, "divergence": divergence}

    trained = train(model, data, loss, settings, out, resume=resume, label="vae").vae
    assert isinstance(trained, VAE)
    normalise_latents(trained, world=WORLDS[world])
    few = replace(DECODER_SETTINGS, seed=settings.seed)
    return train_decoder(out / "decoder", trained, settings=few, world=world, resume=resume, device=device)


def train_decoder(
    out: Path, vae: VAE, *,
    settings: LoopSettings = DECODER_SETTINGS, world: str = "plain", resume: bool = False,
    device: str = "cpu",
) -> VAE:  # fmt: skip
    """Train the decoder of an autoencoder on noisy latents, with the encoder frozen.

    A UNet's latents are never exactly those of an image. A decoder trained on exact ones only turns the
    difference into texture.
    """
    dtype = training_dtype(device)
    encoder = copy.deepcopy(vae).to(device, dtype).requires_grad_(False)

    def loss(module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        pixels = from_levels(batch.to(device, memory_format=torch.channels_last))
        latents = encoder.encode(pixels.to(dtype)).mean
        spread = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, device=device)
        decoded = computing_in(dtype, module)((latents + spread * torch.randn_like(latents)).to(dtype))
        return _differences(decoded.float(), pixels)

    model = Decoding(vae).to(device)
    data = Crops(batch_size=settings.batch_size, seed=settings.seed + 1, world=WORLDS[world])
    trained = train(model, data, loss, settings, out, resume=resume, label="decoder")
    assert isinstance(trained, Decoding)
    vae.decoder, vae.post_quant_conv = trained.decoder, trained.post_quant_conv
    return vae


def _differences(decoded: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    absolute = (decoded - pixels).abs().mean()
    edges = torch.stack([(decoded - pixels).diff(dim=axis).abs().mean() for axis in (-1, -2)]).sum()
    psnr = 10 * torch.log10(4.0 / (decoded - pixels).square().mean())
    return {"loss": absolute + 0.5 * edges, "absolute": absolute, "edges": edges, "psnr": psnr}


@torch.no_grad()
def initialised(vae: VAE) -> VAE:
    """Initialise with weights that preserve variance, halved residual branches and a small latent variance.

    torch's default shrinks the signal, layer by layer, below the random biases, and the first thousand steps
    are spent on learning that images have a colour. (He et al. 1502.01852; Zhang et al. 1901.09321.)
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.weight *= 0.5
        elif isinstance(module, Attention):
            module.to_out[0].weight *= 0.5  # type: ignore[operator]
    assert vae.quant_conv.bias is not None
    vae.quant_conv.bias[vae.layout.latent_channels :] = -6.0  # log-variance
    return vae


@torch.no_grad()
def normalise_latents(vae: VAE, pictures: int = 512, world: World = PLAIN) -> None:
    """Change the convolutions around the latents so that each channel has mean 0 and variance 1.

    Reconstructions do not change, since the decoder undoes the normalisation.
    """
    device = vae.device
    means = torch.cat([vae.encode(batch.to(device)).mean for batch in _validation(pictures, world=world)])
    mean, std = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    channels = vae.layout.latent_channels
    encode, decode = vae.quant_conv, vae.post_quant_conv
    assert encode.bias is not None and decode.bias is not None
    encode.weight[:channels] /= std[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / std
    encode.bias[channels:] -= 2 * std.log()
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= std[None, :, None, None]


def _validation(pictures: int, batch_size: int = 32, world: World = PLAIN) -> Iterator[Pixels]:
    """Yield renders of the stream with seed 1."""
    for start in range(0, pictures, batch_size):
        renders = render_batch(scene(1, index, world=world) for index in range(start, start + batch_size))
        yield from_levels(torch.from_numpy(renders).permute(0, 3, 1, 2))
