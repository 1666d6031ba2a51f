"""Train the miniature SDXL: the published objective on latents of renders."""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.layouts import SDXL_MINI
from ssd1b.models.attention import Attention, SpatialTransformer, TransformerBlock, plain_attention
from ssd1b.models.layers import ResnetBlock
from ssd1b.models.text import TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.tabletop.cache import Shards
from ssd1b.tabletop.captions import caption
from ssd1b.tabletop.scenes import scene
from ssd1b.tabletop.views import photograph, view
from ssd1b.training.loop import Batch, LoopSettings, train
from ssd1b.training.precision import computing_in, training_dtype

SETTINGS = LoopSettings(
    steps=1420, batch_size=96, learning_rate=1e-3, muon_rate=0.02, muon_decay=0.1, decay_steps=1008,
    warmup_steps=30, ema_decay=0.995, checkpoint_steps=100,
)  # fmt: skip
FURTHER = replace(
    SETTINGS, steps=2180, batch_size=48, learning_rate=6e-4, muon_rate=0.008, decay_steps=2040, seed=1
)
"""Of a run that goes on with a trained model: at the full rate it would first unlearn (docs/log)."""

PICTURES = 24 * 1024
CAPTION_DROPOUT = 0.1
"""Share of pictures learned without their caption, for classifier-free guidance (2207.12598)."""

MAX_WEIGHT = 5.0
"""Gamma of min-SNR (2303.09556)."""

COMPILED = TransformerBlock
"""What a CPU trains faster when compiled (docs/log), once for all blocks of a width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedLatents:
    """Cached latents with a fresh caption each time they come up."""

    latents: Shards
    text: TextEncoders
    batch_size: int
    seed: int

    def __getitem__(self, step: int) -> Batch:
        """Latents in the order of a new shuffle each epoch, with their captions' tokens and their views."""
        per_epoch = len(self.latents) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.latents))
        indices = order[position * self.batch_size : (position + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, step, 1))
        tokens = self.text.tokenize([caption(scene(self.seed, int(index)), rng) for index in indices])
        return {
            "latents": torch.from_numpy(self.latents[indices]),
            "tokens": tokens,
            "time_ids": torch.tensor([view(self.seed, int(index)).time_ids for index in indices]),
            "kept": torch.from_numpy(rng.random(self.batch_size) >= CAPTION_DROPOUT),
        }


def loss_weights(schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Weight of each picture's squared error in the noise: ``min(snr + 1, gamma) / snr``.

    Min-SNR (2303.09556) caps what nearly clean pictures weigh; the ``+ 1``, as in its form for v-prediction
    and in EDM (2206.00364, table 1), keeps the noisiest ones from weighing nothing: they decide the
    background's colour, which an epsilon model otherwise learns last.
    """
    snr = schedule.snr(timesteps)
    return (snr + 1).clamp(max=MAX_WEIGHT) / snr


def train_unet(
    out: Path, vae: VAE, text: TextEncoders, cache: Path, *, start: UNet | None = None,
    settings: LoopSettings = SETTINGS, resume: bool = False, device: str = "cpu",
) -> UNet:  # fmt: skip
    """Train ``SDXL_MINI`` against frozen text encoders and a frozen autoencoder.

    Args:
        out: of the run.
        vae: float32, with normalised latents.
        text: both encoders.
        cache: folder for latents; its name must identify the autoencoder.
        start: a UNet to go on with, in place of a new one.
        settings: of the run.
        resume: go on with the run in ``out``.
        device: where to train.
    """
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)
    model = (start or initialised(UNet(SDXL_MINI))).to(device)
    if device == "cpu":
        _quicken(model, dtype)
    text.encoder.to(device)
    text.encoder_2.to(device)
    latents = Shards(
        cache / f"seed-{settings.seed}",
        PICTURES,
        partial(_encode, vae, settings.seed),
        label="encode renders",
    )
    schedule = NoiseSchedule()

    def loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        clean = batch["latents"].to(device).float()
        kept = batch["kept"].to(device)
        with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            conditioning = text.encode(batch["tokens"])
        noise = torch.randn_like(clean)
        timesteps = torch.randint(schedule.num_train_timesteps, (len(clean),), device=device)
        predicted = computing_in(dtype, module)(
            schedule.add_noise(clean, noise, timesteps).to(dtype),
            timesteps.float(),
            # SDXL's convention: no caption is zeros, not the encoding of an empty text.
            (conditioning.embeds * kept[:, None, None]).to(dtype),
            (conditioning.pooled * kept[:, None]).to(dtype),
            batch["time_ids"].to(device).float(),
        ).float()
        errors = (predicted - schedule.target(clean, noise, timesteps)).square().mean(dim=(1, 2, 3))
        return {"loss": (errors * loss_weights(schedule, timesteps)).mean(), "noise_mse": errors.mean()}

    data = CaptionedLatents(latents=latents, text=text, batch_size=settings.batch_size, seed=settings.seed)
    return train(model, data, loss, settings, out, resume=resume, label="unet")  # type: ignore[return-value]


def _quicken(model: UNet, dtype: torch.dtype) -> None:
    """Choose what trains fastest on a CPU (docs/log): kernel, memory layout, compiled blocks."""
    if dtype is torch.float32:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = plain_attention
        if isinstance(module, COMPILED) and shutil.which("g++"):
            module.compile()


@torch.no_grad()
def initialised(unet: UNet) -> UNet:
    """Start every residual branch, and the output, at zero, as SDXL's own code does (``zero_module``)."""
    nn.init.zeros_(unet.conv_out.weight)
    for module in unet.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, SpatialTransformer):
            nn.init.zeros_(module.proj_out.weight)
    return unet


@torch.inference_mode()
def _encode(vae: VAE, seed: int, indices: range, batch_size: int = 32) -> np.ndarray:
    parts = []
    for start in range(indices.start, indices.stop, batch_size):
        few = range(start, start + batch_size)
        pictures = np.stack([photograph(scene(seed, index), view(seed, index)) for index in few])
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(vae.quant_conv.weight.device)
        parts.append(vae.encode(pixels.float() / 127.5 - 1.0).mean.half().cpu().numpy())
    return np.concatenate(parts)
