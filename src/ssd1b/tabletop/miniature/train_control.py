"""Training of a miniature ControlNet, which reads the edges of renders (2302.05543).

It starts as a copy of a trained UNet's resnets on the way down, without the transformers: edges say where
solids are, and the UNet reads the caption itself. The UNet stays frozen. What is added to its features is
zero at the start. Where solids are is decided in the first steps of a generation, so noisy timesteps are
drawn more often.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssd1b.edges import canny
from ssd1b.layouts import ControlNetLayout, encoder_of
from ssd1b.models.controlnet import Controlled, ControlNet
from ssd1b.models.text import TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.tabletop.miniature.cache import Shards
from ssd1b.tabletop.miniature.train_unet import MAX_WEIGHT, CaptionedLatents, captioned_latents
from ssd1b.tabletop.world.scenes import WORLDS, World, scene
from ssd1b.tabletop.world.views import SIZE, photograph, view
from ssd1b.training.batches import LatentBatch, control_levels
from ssd1b.training.kernels import COMPILING, use_fast_cpu_kernels, use_fast_cpu_text_kernels
from ssd1b.training.loop import train
from ssd1b.training.objective import Objective
from ssd1b.training.precision import computing_in, convert_frozen, training_dtype
from ssd1b.training.settings import LoopSettings

SETTINGS = LoopSettings(
    steps=700, batch_size=32, learning_rate=2e-3, muon_rate=0.01, muon_decay=0.1, decay_steps=500,
    warmup_steps=20, ema_decay=0.99, checkpoint_steps=100, seed=5,
)  # fmt: skip

HINT = (8, 16, 32, 64)
"""Channels of the convolutions that read the edges."""

PICTURES = 8 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Batches of captioned latents with edges as control images, ``[B, 1, SIZE, SIZE]``."""

    captioned: CaptionedLatents
    edges: Shards

    def __getitem__(self, step: int) -> LatentBatch:
        """Return the batch of a step."""
        indices, _, _ = self.captioned.scenes_at(step)
        return self.captioned[step]._replace(controls=_unpacked(self.edges[indices]))


def train_control(
    out: Path, unet: UNet, vae: VAE, text: TextEncoders, cache: Path, *, settings: LoopSettings = SETTINGS,
    world: str = "plain", resume: bool = False, device: str = "cpu",
    notify: Callable[[str], None] = lambda message: None,
) -> ControlNet:  # fmt: skip
    """Train a ControlNet with the resnets of a UNet's encoder.

    Args:
        out: folder of the run.
        unet: float32; it is not changed, except for its number format.
        vae: float32.
        text: both encoders, which are not changed.
        cache: folder of latents and edges.
        settings: of the run.
        world: a key of ``WORLDS``.
        resume: continue the run in ``out``.
        device: to train on.
        notify: called with a message if the first steps will compile.
    """
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)
    control = ControlNet(ControlNetLayout(encoder=encoder_of(unet.layout, transformers=False), hint=HINT))
    control.copy_encoder(unet)
    model = Controlled(unet.requires_grad_(False), control).to(device)
    for encoder in (text.encoder, text.encoder_2):
        encoder.requires_grad_(False).to(device)
    if device == "cpu":
        if use_fast_cpu_kernels(model, dtype):
            notify(COMPILING)
        use_fast_cpu_text_kernels(text.encoder)
        use_fast_cpu_text_kernels(text.encoder_2)
    convert_frozen(model, dtype)
    objective = Objective(text=text, device=device, dtype=dtype, max_weight=MAX_WEIGHT, early=True)

    def loss(module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        example = objective(batch)
        assert batch.controls is not None
        edges = control_levels(batch.controls, device, dtype)
        predicted = computing_in(dtype, module)(edges, *example.inputs).float()
        errors = (predicted - example.target).square().mean(dim=(1, 2, 3))
        return {"loss": (errors * example.weights).mean(), "noise_mse": errors.mean()}

    captioned = captioned_latents(vae, text, cache, settings, world=world, pictures=PICTURES)
    edges = Shards(
        cache / "edges" / f"{world}-{settings.seed}", len(captioned.latents),
        partial(_packed, settings.seed, WORLDS[world]), label="find edges",
    )  # fmt: skip
    data = Edges(captioned=captioned, edges=edges)
    average = train(model, data, loss, settings, out, resume=resume, label="control")
    assert isinstance(average, Controlled)
    return average.controlnet


def _packed(seed: int, world: World, indices: range) -> NDArray[np.uint8]:
    """Render images, and store their edges with a bit for each pixel."""
    pictures = (photograph(scene(seed, index, world=world), view(seed, index)) for index in indices)
    return np.packbits(np.stack([canny(each) for each in pictures]) > 0, axis=2)


def _unpacked(edges: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(255 * np.unpackbits(edges, axis=2, count=SIZE))[:, None]
