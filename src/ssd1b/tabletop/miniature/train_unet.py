"""Train the miniature SDXL: the published objective on latents of renders, the text encoders learning along.

Beside the noise, a linear layer on the UNet's coarse features is asked which solid stands where, which in a
noisy picture only the caption tells. Features that are held to what a picture means make diffusion models
learn sooner (REPA, 2410.06940); here the truth itself takes the place of a vision model's features. The layer
is dropped afterwards. A run that goes on with what has learned all this trains the UNet alone.
"""

import math
from collections.abc import Mapping
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
from ssd1b.training.batches import LatentBatch
from ssd1b.training.digests import digest_of_encoder
from ssd1b.training.kernels import use_fast_cpu_kernels, use_fast_cpu_text_kernels
from ssd1b.training.loop import train
from ssd1b.training.objective import Objective, noised
from ssd1b.training.precision import computing_in, training_dtype
from ssd1b.training.settings import LoopSettings

SETTINGS = LoopSettings(
    steps=2600, batch_size=96, learning_rate=1e-3, muon_rate=0.02, muon_decay=0.1, decay_steps=2000,
    warmup_steps=30, ema_decay=0.995, checkpoint_steps=100,
)  # fmt: skip
FURTHER = replace(SETTINGS, learning_rate=3e-4, muon_rate=0.006, decay_steps=2600, seed=4)
"""Of a run that goes on with a trained model: at the full rate it would first unlearn (docs/log)."""

PICTURES = 32 * 1024
CAPTION_DROPOUT = 0.1
"""Share of pictures learned without their caption, for classifier-free guidance (2207.12598)."""

READ_AT = "up_blocks.0.upsamplers.0"
"""The module behind the deepest transformers, whose output, half as fine as the latents, is read."""

READING_WEIGHT = 0.05

MAX_WEIGHT = 15.0
"""Min-SNR's gamma: its usual 5 counts too little the small noise at which highlights and edges are drawn."""


class Learner(nn.Module):
    """Everything that learns: the UNet, its text encoders, and the layer that reads the UNet's features.

    Text encoders that were trained contrastively tell colours better than shapes (docs/log). With the UNet
    they learn what pictures need.
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
        """Predict the noise, and what stands in each of ``GRID`` x ``GRID`` cells (logits).

        Args:
            latents: noisy ones.
            timesteps: ``[B]``.
            ids: of the first tokenizer, ``[B, 77]``.
            ids_2: of the second.
            has_caption: ``[B]``, 0 where the caption is left out, else 1.
            time_ids: ``[B, 6]``.
        """
        states, _ = self.text_encoder(ids)
        states_2, pooled = self.text_encoder_2(ids_2)
        # SDXL's convention: no caption is zeros, not the encoding of an empty text.
        embeds = torch.cat([states, states_2], dim=-1) * has_caption[:, None, None]
        with capture_outputs(self.unet, [READ_AT]) as features:
            predicted = self.unet(latents, timesteps, embeds, pooled * has_caption[:, None], time_ids)
        read = F.interpolate(self.reader_conv_out(features[READ_AT]), (GRID, GRID))
        return predicted, read


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedLatents:
    """Cached latents with a fresh caption each time they come up."""

    latents: Shards
    text: TextEncoders
    batch_size: int
    seed: int
    world: World

    def __getitem__(self, step: int) -> LatentBatch:
        """Return the latents of a step with their captions' tokens and their views."""
        rng = np.random.default_rng((self.seed, step, 1))
        indices, scenes, views = self.shown(step)
        return LatentBatch(
            latents=torch.from_numpy(self.latents[indices]),
            text=self.text.tokenize([caption(each, rng) for each in scenes]),
            time_ids=torch.tensor([each.time_ids for each in views]),
            has_caption=torch.from_numpy(rng.random(self.batch_size) >= CAPTION_DROPOUT),
        )

    def shown(self, step: int) -> tuple[NDArray[np.int64], list[Scene], list[View]]:
        """Return the indices, scenes and views of a step, in the order of a new shuffle each epoch."""
        per_epoch = len(self.latents) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.latents))
        indices = order[position * self.batch_size : (position + 1) * self.batch_size]
        scenes = [scene(self.seed, int(index), world=self.world) for index in indices]
        return indices, scenes, [view(self.seed, int(index)) for index in indices]


class SceneBatch(NamedTuple):
    """Captioned latents, and the right answers in each cell (``answers_by_cell``)."""

    captioned: LatentBatch
    answers: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """Captioned latents with what stands where."""

    captioned: CaptionedLatents

    def __getitem__(self, step: int) -> SceneBatch:
        """Return a batch with its answers; a cropped view has none, since cells divide the whole square."""
        _, scenes, views = self.captioned.shown(step)
        uncut = torch.tensor([_uncut(each) for each in views])[:, None, None]
        answers = {name: cells.where(uncut, ABSENT) for name, cells in answers_by_cell(scenes).items()}
        return SceneBatch(self.captioned[step], answers)


def captioned_latents(
    vae: VAE, text: TextEncoders, cache: Path, settings: LoopSettings, *, world: str = "plain"
) -> CaptionedLatents:
    """Render and encode what a training will see, as far as it is not in ``cache`` yet.

    Args:
        vae: float32.
        text: for its tokenizers.
        cache: folder for the latents of any autoencoders and worlds.
        settings: of the training; a short one needs few pictures.
        world: a key of ``WORLDS``.
    """
    seed = settings.seed
    asked = math.ceil(settings.steps * settings.batch_size / SHARD) * SHARD
    latents = Shards(
        cache / f"latents-{digest_of_encoder(vae)}" / f"{world}-{seed}",
        min(PICTURES, asked),
        partial(_encode, vae, seed, WORLDS[world]),
        label="encode renders",
    )
    return CaptionedLatents(
        latents=latents, text=text, batch_size=settings.batch_size, seed=seed, world=WORLDS[world]
    )


def train_unet(
    out: Path, vae: VAE, text: TextEncoders, cache: Path, *, settings: LoopSettings = SETTINGS,
    world: str = "plain", resume: bool = False, device: str = "cpu",
) -> UNet:  # fmt: skip
    """Train ``SDXL_MINI`` and its text encoders against a frozen autoencoder.

    Args:
        out: of the run.
        vae: float32, with normalised latents.
        text: both encoders, which afterwards hold their averaged weights.
        cache: folder in which latents are kept.
        settings: of the run.
        world: a key of ``WORLDS``.
        resume: go on with the run in ``out``.
        device: where to train.
    """
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)
    model = initialised(UNet(SDXL_MINI)).to(device)
    if device == "cpu":
        use_fast_cpu_kernels(model, dtype)
        use_fast_cpu_text_kernels(text.encoder)
        use_fast_cpu_text_kernels(text.encoder_2)
    learner = Learner(model, text).requires_grad_(True).to(device)
    schedule = NoiseSchedule()

    def loss(module: nn.Module, batch: SceneBatch) -> dict[str, Tensor]:
        latents, tokens, time_ids, has_caption = batch.captioned
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
    assert isinstance(average, Learner)
    text.encoder.load_state_dict(average.text_encoder.state_dict())
    text.encoder_2.load_state_dict(average.text_encoder_2.state_dict())
    return average.unet


def train_unet_further(
    out: Path, unet: UNet, vae: VAE, text: TextEncoders, cache: Path, *, settings: LoopSettings = FURTHER,
    world: str = "plain", resume: bool = False, device: str = "cpu",
) -> UNet:  # fmt: skip
    """Go on with a trained UNet. Its text encoders stay as they are, which makes a step a quarter shorter.

    Args:
        out: of the run.
        unet: float32.
        vae: that it was trained with.
        text: likewise.
        cache: folder in which latents are kept.
        settings: of the run.
        world: a key of ``WORLDS``.
        resume: go on with the run in ``out``.
        device: where to train.
    """
    dtype = training_dtype(device)
    unet.requires_grad_(True).to(device)
    text.encoder.to(device)
    text.encoder_2.to(device)
    if device == "cpu":
        use_fast_cpu_kernels(unet, dtype)
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
    """Cross-entropies of what was read at the solids' middles; 0 in a batch where nothing is asked."""
    terms = {}
    parts = read.split([*map(len, SOLID_ANSWERS.values())], dim=1)
    for name, logits in zip(SOLID_ANSWERS, parts, strict=True):
        answers = truth[name].to(logits.device)
        summed = F.cross_entropy(logits, answers, ignore_index=ABSENT, reduction="sum")
        terms[name] = summed / (answers != ABSENT).sum().clamp(min=1)
    return terms


def _uncut(view: View) -> bool:
    return view.original_height == view.original_width


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
def _encode(vae: VAE, seed: int, world: World, indices: range, batch_size: int = 32) -> np.ndarray:
    parts = []
    for start in range(indices.start, indices.stop, batch_size):
        few = range(start, start + batch_size)
        scenes = [scene(seed, index, world=world) for index in few]
        pictures = np.stack(
            [photograph(each, view(seed, index)) for index, each in zip(few, scenes, strict=True)]
        )
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(vae.device)
        parts.append(vae.encode(pixels.float() / 127.5 - 1.0).mean.half().cpu().numpy())
    return np.concatenate(parts)
