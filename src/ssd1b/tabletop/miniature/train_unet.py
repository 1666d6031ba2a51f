"""Training of the miniature SDXL on latents of renders, jointly with its text encoders.

An auxiliary linear layer on the UNet's coarse features predicts which solid is where, which in a noisy image
only the caption determines. Aligning features with an image's meaning speeds up the training of diffusion
models (REPA, 2410.06940, with features of a vision model; here with the ground truth). The layer is dropped
afterwards. Finetuning trains the UNet alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.distill.features import capture_outputs
from ssd1b.layouts import SDXL_MINI
from ssd1b.models.attention import SpatialTransformer
from ssd1b.models.layers import ResnetBlock
from ssd1b.models.text import Conditioning, TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.tabletop.judge.judge import GRID, SOLID_ANSWERS
from ssd1b.tabletop.miniature.cache import SHARD, Shards
from ssd1b.tabletop.miniature.train_judge import ABSENT, answers_by_cell
from ssd1b.tabletop.world.captions import caption
from ssd1b.tabletop.world.scenes import WORLDS, Scene, World, scene
from ssd1b.tabletop.world.views import View, photograph, view
from ssd1b.tensors import from_levels
from ssd1b.training.batches import LatentBatch
from ssd1b.training.digests import digest_of_encoder
from ssd1b.training.kernels import COMPILING, use_fast_cpu_kernels, use_fast_cpu_text_kernels
from ssd1b.training.loop import train
from ssd1b.training.objective import Objective, noised
from ssd1b.training.precision import computing_in, training_dtype
from ssd1b.training.settings import LoopSettings

SETTINGS = LoopSettings(
    steps=2600, batch_size=96, learning_rate=1e-3, muon_rate=0.02, muon_decay=0.1, decay_steps=2000,
    warmup_steps=30, ema_decay=0.995, checkpoint_steps=100,
)  # fmt: skip
FINETUNING = replace(SETTINGS, learning_rate=3e-4, muon_rate=0.006, decay_steps=2600, seed=4)
"""Settings for finetuning. At the full rate a trained model would first get worse (docs/log)."""

PICTURES = 32 * 1024
CAPTION_DROPOUT = 0.1
"""Share of images without their caption, for classifier-free guidance (2207.12598)."""

READER_MODULE = "up_blocks.0.upsamplers.0"
"""The module whose output the auxiliary layer reads: behind the deepest transformers, at half resolution."""

READING_WEIGHT = 0.05

MAX_WEIGHT = 15.0
"""Min-SNR's gamma. The usual 5 gives too little weight to low noise, where highlights and edges form."""


class JointModel(nn.Module):
    """The UNet, its text encoders and the auxiliary layer, trained jointly.

    Contrastively trained text encoders distinguish colours better than shapes (docs/log); joint training
    improves that.
    """

    def __init__(self, unet: UNet, text: TextEncoders) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text.encoder
        self.text_encoder_2 = text.encoder_2
        answers = sum(map(len, SOLID_ANSWERS.values()))
        self.reader_conv_out = nn.Conv2d(unet.layout.levels[-1].channels, answers, 1)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        ids: Tensor,
        ids_2: Tensor,
        has_caption: Tensor,
        time_ids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise, and the logits of the solid in each of ``GRID`` x ``GRID`` cells.

        Args:
            latents: noisy latents.
            timesteps: ``[B]``.
            ids: tokens of the first text encoder, ``[B, 77]``.
            ids_2: tokens of the second text encoder, ``[B, 77]``.
            has_caption: ``[B]``, 0 if the caption is dropped, else 1.
            time_ids: ``[B, 6]``.
        """
        states, _ = self.text_encoder(ids)
        states_2, pooled = self.text_encoder_2(ids_2)
        # SDXL's convention: no caption is zeros, not the encoding of an empty text.
        embeds = torch.cat([states, states_2], dim=-1) * has_caption[:, None, None]
        with capture_outputs(self.unet, [READER_MODULE]) as features:
            predicted = self.unet(latents, timesteps, embeds, pooled * has_caption[:, None], time_ids)
        read = F.interpolate(self.reader_conv_out(features[READER_MODULE]), (GRID, GRID))
        return predicted, read


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedLatents:
    """Cached latents with a new caption each time they are used."""

    latents: Shards
    text: TextEncoders
    batch_size: int
    seed: int
    world: World

    def __getitem__(self, step: int) -> LatentBatch:
        """Return the latents of a step with their captions' tokens and their views."""
        rng = np.random.default_rng((self.seed, step, 1))
        indices, scenes, views = self.scenes_at(step)
        return LatentBatch(
            latents=torch.from_numpy(self.latents[indices]),
            text=self.text.tokenize([caption(each, rng) for each in scenes]),
            time_ids=torch.tensor([each.time_ids for each in views]),
            has_caption=torch.from_numpy(rng.random(self.batch_size) >= CAPTION_DROPOUT),
        )

    def scenes_at(self, step: int) -> tuple[NDArray[np.int64], list[Scene], list[View]]:
        """Return the indices, scenes and views of a step, in the order of a new shuffle each epoch."""
        per_epoch = len(self.latents) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.latents))
        indices = order[position * self.batch_size : (position + 1) * self.batch_size]
        scenes = [scene(self.seed, int(index), world=self.world) for index in indices]
        return indices, scenes, [view(self.seed, int(index)) for index in indices]


class SceneBatch(NamedTuple):
    """Captioned latents with the true answers in each cell (``answers_by_cell``)."""

    captioned: LatentBatch
    answers: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """Batches of captioned latents with the true answers."""

    captioned: CaptionedLatents

    def __getitem__(self, step: int) -> SceneBatch:
        """Return the batch of a step. Cropped views have no answers, since cells divide the full square."""
        _, scenes, views = self.captioned.scenes_at(step)
        uncut = torch.tensor([each.original_height == each.original_width for each in views])[:, None, None]
        answers = {name: cells.where(uncut, ABSENT) for name, cells in answers_by_cell(scenes).items()}
        return SceneBatch(self.captioned[step], answers)


def captioned_latents(
    vae: VAE, text: TextEncoders, cache: Path, settings: LoopSettings, *, world: str = "plain",
    pictures: int | None = None,
) -> CaptionedLatents:  # fmt: skip
    """Render and encode the training images that ``cache`` lacks.

    Args:
        vae: float32.
        text: provides the tokenizers.
        cache: folder for latents of all autoencoders and worlds.
        settings: of the training; a short one needs few images.
        world: a key of ``WORLDS``.
        pictures: the most images; None is ``PICTURES``.
    """
    seed = settings.seed
    count = math.ceil(settings.steps * settings.batch_size / SHARD) * SHARD
    latents = Shards(
        cache / f"latents-{digest_of_encoder(vae)}" / f"{world}-{seed}",
        min(pictures or PICTURES, count),
        partial(_encode, vae, seed, WORLDS[world]),
        label="encode renders",
    )
    return CaptionedLatents(
        latents=latents, text=text, batch_size=settings.batch_size, seed=seed, world=WORLDS[world]
    )


def train_unet(
    out: Path, vae: VAE, text: TextEncoders, cache: Path, *, settings: LoopSettings = SETTINGS,
    world: str = "plain", resume: bool = False, device: str = "cpu",
    notify: Callable[[str], None] = lambda message: None,
) -> UNet:  # fmt: skip
    """Train ``SDXL_MINI`` and its text encoders against a frozen autoencoder.

    Args:
        out: folder of the run.
        vae: float32, with normalised latents.
        text: both encoders; afterwards they hold their averaged weights.
        cache: folder of the latents.
        settings: of the run.
        world: a key of ``WORLDS``.
        resume: continue the run in ``out``.
        device: to train on.
        notify: called with a message if the first steps will compile.
    """
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)
    model = initialised(UNet(SDXL_MINI)).to(device)
    if device == "cpu":
        if use_fast_cpu_kernels(model, dtype):
            notify(COMPILING)
        use_fast_cpu_text_kernels(text.encoder)
        use_fast_cpu_text_kernels(text.encoder_2)
    learner = JointModel(model, text).requires_grad_(True).to(device)
    schedule = NoiseSchedule()

    def loss(module: nn.Module, batch: SceneBatch) -> dict[str, Tensor]:
        latents, tokens, time_ids, has_caption, *_ = batch.captioned
        assert not isinstance(tokens, Conditioning)
        ids, ids_2 = (each.ids[:, 0].to(device) for each in tokens)
        noisy = noised(schedule, latents.to(device).float(), max_weight=MAX_WEIGHT)
        predicted, read = computing_in(dtype, module)(
            noisy.latents.to(dtype), noisy.timesteps, ids, ids_2, has_caption.to(device, dtype),
            time_ids.to(device).float(),
        )  # fmt: skip
        errors = (predicted.float() - noisy.target).square().mean(dim=(1, 2, 3))
        terms = _reading(read.float(), batch.answers)
        loss = (errors * noisy.weights).mean() + READING_WEIGHT * torch.stack([*terms.values()]).sum()
        return {"loss": loss, "noise_mse": errors.mean(), **terms}

    data = Scenes(captioned=captioned_latents(vae, text, cache, settings, world=world))
    average = train(learner, data, loss, settings, out, resume=resume, label="unet")
    assert isinstance(average, JointModel)
    text.encoder.load_state_dict(average.text_encoder.state_dict())
    text.encoder_2.load_state_dict(average.text_encoder_2.state_dict())
    return average.unet


def finetune_unet(
    out: Path, unet: UNet, vae: VAE, text: TextEncoders, cache: Path, *, settings: LoopSettings = FINETUNING,
    world: str = "plain", resume: bool = False, device: str = "cpu",
    notify: Callable[[str], None] = lambda message: None,
) -> UNet:  # fmt: skip
    """Finetune a float32 UNet with frozen text encoders, which makes a step a quarter shorter.

    Other arguments are those of ``train_unet``.
    """
    dtype = training_dtype(device)
    unet.requires_grad_(True).to(device)
    text.encoder.to(device)
    text.encoder_2.to(device)
    if device == "cpu" and use_fast_cpu_kernels(unet, dtype):
        notify(COMPILING)
    objective = Objective(text=text, device=device, dtype=dtype, max_weight=MAX_WEIGHT)

    def loss(module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        example = objective(batch)
        predicted = computing_in(dtype, module)(*example.inputs).float()
        errors = (predicted - example.target).square().mean(dim=(1, 2, 3))
        return {"loss": (errors * example.weights).mean(), "noise_mse": errors.mean()}

    data = captioned_latents(vae, text, cache, settings, world=world)
    average = train(unet, data, loss, settings, out, resume=resume, label="unet")
    assert isinstance(average, UNet)
    return average


def _reading(read: Tensor, truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the cross-entropies at the solids' middles; 0 for a batch without answers."""
    terms = {}
    parts = read.split([*map(len, SOLID_ANSWERS.values())], dim=1)
    for name, logits in zip(SOLID_ANSWERS, parts, strict=True):
        answers = truth[name].to(logits.device)
        summed = F.cross_entropy(logits, answers, ignore_index=ABSENT, reduction="sum")
        terms[name] = summed / (answers != ABSENT).sum().clamp(min=1)
    return terms


@torch.no_grad()
def initialised(unet: UNet) -> UNet:
    """Initialise the output and every residual branch with zero, as SDXL's code does (``zero_module``)."""
    nn.init.zeros_(unet.conv_out.weight)
    for module in unet.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, SpatialTransformer):
            nn.init.zeros_(module.proj_out.weight)
    return unet


@torch.inference_mode()
def _encode(vae: VAE, seed: int, world: World, indices: range, batch_size: int = 32) -> np.ndarray:
    parts = []
    for start in range(indices.start, indices.stop, batch_size):
        few = range(start, start + batch_size)
        scenes = [scene(seed, index, world=world) for index in few]
        pictures = np.stack(
            [photograph(each, view(seed, index)) for index, each in zip(few, scenes, strict=True)]
        )
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(vae.device)
        parts.append(vae.encode(from_levels(pixels)).mean.half().cpu().numpy())
    return np.concatenate(parts)
