"""The trainings of the miniature, each in a folder of one run, and the model that comes of them."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from ssd1b.errors import InputError, unknown
from ssd1b.evaluate.clip_score import load_image_encoder
from ssd1b.layouts import MINI_SDXL
from ssd1b.models.text import TextEncoders, load_tokenizer
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.models.vision import CLIP_VISION_MINI, IMAGE_ENCODER, ImageEncoder, vision_config
from ssd1b.tabletop import train_clip, train_judge, train_unet, train_vae
from ssd1b.tabletop.tokenizer import train_tokenizer
from ssd1b.tabletop.train_clip import ContrastiveTrio
from ssd1b.training.loop import LoopSettings
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.files import replacing, write_json, write_tensors
from ssd1b.weights.folder import save_folder
from ssd1b.weights.loading import load_component, open_checkpoint
from ssd1b.weights.vocabulary import PADDING, write_tokenizer

DEFAULTS = {"guidance_scale": 4.0, "steps": 20, "sampler": "unipc"}
"""Settings that the assembled model recommends."""

Network = TypeVar("Network", bound=nn.Module)

SETTINGS: dict[str, LoopSettings] = {
    "vae": train_vae.SETTINGS,
    "clip": train_clip.SETTINGS,
    "unet": train_unet.SETTINGS,
    "judge": train_judge.SETTINGS,
}
"""What can be trained: the UNet after VAE and CLIP, the judge at any time."""

FURTHER = {**SETTINGS, "unet": train_unet.FURTHER}
"""The same for a part that goes on with a model's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What a UNet is trained with, and needs to draw."""

    vae: VAE
    text: TextEncoders
    image_encoder: ImageEncoder
    tokenizers: dict[str, Path]

    @property
    def encoding(self) -> str:
        """A digest of what makes the latents, which are believed by their folder's name."""
        parts = (
            p.detach().cpu().numpy()
            for half in (self.vae.encoder, self.vae.quant_conv)
            for p in half.parameters()
        )
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def train_part(
    part: str, run: Path, *,
    start: Path | None = None, steps: int | None = None, batch_size: int | None = None, resume: bool = False,
    device: str = "cpu",
) -> Path:  # fmt: skip
    """Train one part of the miniature in ``run``; the UNet, which needs the others, completes the model.

    Args:
        part: "vae", "clip", "unet" or "judge".
        run: folder of the whole run; each part's training has a folder of its own in it.
        start: a model of the same layout whose VAE or UNet to go on with, in place of new weights; for the
            UNet, also what was not trained in ``run``.
        steps: optimiser steps, if not the part's own number; the decay keeps its share of them.
        batch_size: pictures (for the VAE, crops) a step, if not the part's own number.
        resume: go on with the part's training.
        device: where to train.

    Returns:
        What was made: the part's weights, or at last the model's folder.

    Raises:
        InputError: no such part, a part that this one needs is missing, or a run is there already.
    """
    if part not in SETTINGS:
        raise unknown("part", part, SETTINGS)
    settings = (SETTINGS if start is None else FURTHER)[part]
    if steps is not None:
        settings = replace(settings, steps=steps, decay_steps=settings.decay_steps * steps // settings.steps)
    if batch_size is not None:
        settings = replace(settings, batch_size=batch_size)
    if part == "vae":
        first = start and _taken(VAE(MINI_SDXL.vae), start, part)
        vae = train_vae.train_vae(run / part, start=first, settings=settings, resume=resume, device=device)
        return _save(vae, run / part)
    if part in ("clip", "judge"):
        if start is not None:
            raise InputError(f"{part} starts anew: no model's folder holds all of it; leave --from out")
        train = train_clip.train_clip if part == "clip" else train_judge.train_judge
        return _save(train(run / part, settings=settings, resume=resume, device=device), run / part)

    companions = _companions(run, start)
    unet = train_unet.train_unet(
        run / part, companions.vae.to(device), companions.text, run / f"latents-{companions.encoding}",
        start=start and _taken(UNet(MINI_SDXL.unet), start, part),
        settings=settings, resume=resume, device=device,
    )  # fmt: skip
    _save(unet, run / part)
    return assemble(run / "model", unet, companions)


def _companions(run: Path, start: Path | None) -> Companions:
    """Take each from its training in ``run``, or else from the model ``start``."""
    vae, trio = VAE(MINI_SDXL.vae), ContrastiveTrio()
    if start is None or _weights(run / "vae").exists():
        _load(vae, run / "vae")
    else:
        _taken(vae, start, "vae")
    if start is None or _weights(run / "clip").exists():
        _load(trio, run / "clip")
        tokenizers = _tokenizers(run)
    else:
        _taken(trio.text_encoder, start, "text_encoder")
        _taken(trio.text_encoder_2, start, "text_encoder_2")
        trio.image_encoder = load_image_encoder(start)
        tokenizers = open_checkpoint(start).tokenizers
    trio.requires_grad_(False).eval()
    text = TextEncoders(
        encoder=trio.text_encoder,
        encoder_2=trio.text_encoder_2,
        tokenizer=load_tokenizer(tokenizers["text_encoder"]),
        tokenizer_2=load_tokenizer(tokenizers["text_encoder_2"]),
    )
    return Companions(
        vae=vae.requires_grad_(False).eval(),
        text=text,
        image_encoder=trio.image_encoder,
        tokenizers=tokenizers,
    )


def assemble(target: Path, unet: UNet, companions: Companions) -> Path:
    """Write the trained parts as a model's folder in diffusers' format, in 16 bits."""
    parts = {
        "unet": unet.state_dict(),
        "vae": companions.vae.state_dict(),
        "text_encoder": companions.text.encoder.state_dict(),
        "text_encoder_2": companions.text.encoder_2.state_dict(),
    }
    info = ModelInfo(layout=MINI_SDXL, tokenizers=companions.tokenizers, settings=DEFAULTS)
    save_folder(target, info, parts, dtype=torch.float16, overwrite=True)
    with replacing(target / IMAGE_ENCODER) as folder:
        folder.mkdir()
        tower = {name: tensor.half() for name, tensor in companions.image_encoder.state_dict().items()}
        write_tensors(folder / "model.safetensors", tower, {})
        write_json(folder / "config.json", vision_config(CLIP_VISION_MINI))
    return target


def _tokenizers(run: Path) -> dict[str, Path]:
    """Write both tokenizers, if need be, and give their folders by the text encoder's name."""
    folders = {part: run / "tokenizers" / part for part in PADDING}
    for part, folder in folders.items():
        if not folder.exists():
            with replacing(folder) as aside:
                write_tokenizer(aside, *train_tokenizer(), PADDING[part])
    return folders


def _taken(module: Network, model: Path, part: str) -> Network:
    """Fill a module, to be trained on, with the weights of a model."""
    load_component(module, open_checkpoint(model), part, dtype=torch.float32)
    return module


def _load(module: Network, folder: Path) -> Network:
    """Fill a module with what an earlier training in ``folder`` left."""
    if not _weights(folder).exists():
        raise InputError(
            f"{_weights(folder)} is missing: train {folder.name!r} first, in the same run, "
            "or go on with a model's with --from"
        )
    module.load_state_dict(load_file(_weights(folder)))
    return module


def _weights(folder: Path) -> Path:
    return folder / "trained.safetensors"


def _save(module: nn.Module, folder: Path) -> Path:
    with replacing(_weights(folder)) as aside:
        write_tensors(aside, module.state_dict(), {})
    return _weights(folder)
