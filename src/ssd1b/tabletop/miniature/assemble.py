"""The trainings of the miniature, each in a folder of one run, and the model that comes of them."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import nn

from ssd1b.errors import InputError, NotFoundError, unknown
from ssd1b.evaluate.clip_score import load_image_encoder
from ssd1b.layouts import MINI_SDXL
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.models.vision import CLIP_VISION_MINI, IMAGE_ENCODER, ImageEncoder, vision_config
from ssd1b.saving import check_renewable, renewing, replacing
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.miniature import train_clip, train_judge, train_unet, train_vae
from ssd1b.tabletop.miniature.tokenizer import train_tokenizer
from ssd1b.tabletop.miniature.train_clip import ContrastiveTrio
from ssd1b.tabletop.world.scenes import WORLDS
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import Range, check
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.files import read_tensors, write_json, write_tensors
from ssd1b.weights.vocabulary import PADDING, tokenizer_of, write_tokenizer
from ssd1b.weights.writing import save_folder

DEFAULTS = {"guidance_scale": 4.0, "steps": 20, "sampler": "unipc"}
"""Settings that the assembled model recommends."""

Network = TypeVar("Network", bound=nn.Module)

SETTINGS: dict[str, LoopSettings] = {
    "vae": train_vae.SETTINGS,
    "clip": train_clip.SETTINGS,
    "unet": train_unet.SETTINGS,
    "image-encoder": train_clip.LOCKED,
    "judge": train_judge.SETTINGS,
}
"""What can be trained: the UNet after VAE and CLIP, then the image encoder again; the judge at any time."""

FURTHER = {
    **SETTINGS, "clip": train_clip.FURTHER, "unet": train_unet.FURTHER, "judge": train_judge.FURTHER,
}  # fmt: skip
"""The same for a part that goes on with a model's weights."""

BATCH_SIZES: dict[str, Any] = {
    "vae": Annotated[int, Range(4, 4096, multiple_of=train_vae.PER_PICTURE)],
    "clip": Annotated[int, Range(16, 4096, multiple_of=train_clip.LOOK_ALIKES)],
    "unet": Annotated[int, Range(1, 4096)],
    "image-encoder": Annotated[int, Range(16, 4096, multiple_of=train_clip.LOOK_ALIKES)],
    "judge": Annotated[int, Range(2, 4096)],
}
"""Pictures a step: crops come in groups of one picture, captions in groups of look-alikes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What a UNet is trained with, and needs to draw."""

    vae: VAE
    text: TextEncoders
    image_encoder: ImageEncoder
    tokenizers: dict[str, Path]


def train_part(
    part: str, run: Path, *,
    start: Path | None = None, steps: int | None = None, batch_size: int | None = None,
    seed: int | None = None, world: str = "plain", resume: bool = False, device: str = "cpu",
) -> Path:  # fmt: skip
    """Train one part of the miniature in ``run``; the UNet, which needs the others, completes the model.

    The text encoders learn on beside a new UNet, and stay as they are beside one that is gone on with. The
    image encoder, which only the CLIP score needs, follows them afterwards.

    Args:
        part: a key of ``SETTINGS``.
        run: folder of the whole run; each part's training has a folder of its own in it.
        start: a model of the same layout whose part to go on with, in place of new weights; for the UNet,
            also what was not trained in ``run``. For the judge, which no model holds, a judge's file. Not for
            the image encoder, which goes on with the run's own model.
        steps: optimiser steps, if not the part's own number; the decay keeps its share of them.
        batch_size: pictures (for the VAE, crops) a step, if not the part's own number.
        seed: of pictures, captions and noise, if not the part's own.
        world: a key of ``WORLDS``, the same for all parts.
        resume: go on with the part's training.
        device: where to train.

    Returns:
        What was made: the part's weights, or at last the model's folder.

    Raises:
        InputError: no such part, a part that this one needs is missing, or a run is there already.
    """
    if part not in SETTINGS:
        raise unknown("part", part, SETTINGS)
    if world not in WORLDS:
        raise unknown("world", world, WORLDS)
    settings = _chosen(part, start, {"steps": steps, "batch_size": batch_size, "seed": seed})
    how: Any = {"settings": settings, "world": world, "resume": resume, "device": device}
    if part == "vae":
        first = start and _taken(start, part)
        return _save(train_vae.train_vae(run / part, start=first, **how), run / part)
    if part == "clip":
        trio = start and _taken_trio(start)
        tokenizers = _tokenizers(run, start)
        return _save(train_clip.train_clip(run / part, tokenizers, start=trio, **how), run / part)
    if part == "image-encoder":
        if start is not None:
            raise InputError("the image encoder goes on with the run's own: leave --from out")
        return _realign(run, how)
    if part == "judge":
        vae = _vae(run, Model.find("mini-sdxl", offline=True).path)
        judge = start and load_judge(start)
        return _save(train_judge.train_judge(run / part, vae, start=judge, **how), run / part)

    check_renewable(run / "model")
    companions = _companions(run, start)
    beside = (companions.vae.to(device), companions.text, run)
    if start is None:
        unet = train_unet.train_unet(run / part, *beside, **how)
    else:
        unet = train_unet.train_unet_further(run / part, _taken(start, part), *beside, **how)
    _save(unet, run / part)
    return assemble(run / "model", unet, companions)


def _chosen(part: str, start: Path | None, given: dict[str, int | None]) -> LoopSettings:
    """The part's settings with those that were given; the decay keeps its share of the steps."""
    settings = (SETTINGS if start is None else FURTHER)[part]
    changes = {name: value for name, value in given.items() if value is not None}
    if "batch_size" in changes:
        check(f"batch_size of {part}", changes["batch_size"], BATCH_SIZES[part])
    return replace(settings, decay_share=settings.decay_steps / settings.steps, **changes)


def _companions(run: Path, start: Path | None) -> Companions:
    """Take each from its training in ``run``, or else from the model ``start``."""
    vae = _vae(run, start)
    if start is None or _weights(run / "clip").exists():
        trio = _load(ContrastiveTrio(), run / "clip")
        tokenizers = _tokenizers(run, start)
    else:
        trio = _taken_trio(start)
        tokenizers = _model(start).checkpoint.tokenizers
    trio.requires_grad_(False).eval()
    text = TextEncoders(
        encoder=trio.text_encoder,
        encoder_2=trio.text_encoder_2,
        tokenizer=tokenizer_of(tokenizers, "text_encoder"),
        tokenizer_2=tokenizer_of(tokenizers, "text_encoder_2"),
    )
    return Companions(
        vae=vae,
        text=text,
        image_encoder=trio.image_encoder,
        tokenizers=tokenizers,
    )


def _vae(run: Path, start: Path | None) -> VAE:
    """The finished autoencoder of ``run``, or else of the model ``start``."""
    if start is None or _weights(run / "vae").exists():
        vae = _load(VAE(MINI_SDXL.vae), run / "vae")
    else:
        vae = _taken(start, "vae")
    return vae.requires_grad_(False).eval()


def _realign(run: Path, how: dict[str, Any]) -> Path:
    """Teach the image encoder of the run's model what its text encoders have come to say."""
    model = run / "model"
    if not model.exists():
        raise NotFoundError(f"{model} is missing: train 'unet' first, in the same run")
    check_renewable(model)
    trio = _taken_trio(model)
    trio.text_encoder.requires_grad_(False)
    trio.text_encoder_2.requires_grad_(False)
    trained = train_clip.train_clip(run / "image-encoder", _tokenizers(run, model), start=trio, **how)
    with renewing(model) as aside:
        shutil.copytree(model, aside, ignore=shutil.ignore_patterns(IMAGE_ENCODER))
        _save_image_encoder(trained.image_encoder, aside)
    return model


def assemble(target: Path, unet: UNet, companions: Companions) -> Path:
    """Write the trained parts as a model's folder in diffusers' format, in 16 bits."""
    parts = {
        "unet": unet.state_dict(),
        "vae": companions.vae.state_dict(),
        "text_encoder": companions.text.encoder.state_dict(),
        "text_encoder_2": companions.text.encoder_2.state_dict(),
    }
    info = ModelInfo(layout=MINI_SDXL, tokenizers=companions.tokenizers, settings=DEFAULTS, world="tabletop")
    with renewing(target) as aside:
        save_folder(aside, info, parts, dtype=torch.float16)
        _save_image_encoder(companions.image_encoder, aside)
    return target


def _save_image_encoder(encoder: ImageEncoder, model: Path) -> None:
    folder = model / IMAGE_ENCODER
    folder.mkdir()
    halves = {name: tensor.half() for name, tensor in encoder.state_dict().items()}
    write_tensors(folder / "model.safetensors", halves, {})
    write_json(folder / "config.json", vision_config(CLIP_VISION_MINI))


def _tokenizers(run: Path, start: Path | None) -> dict[str, Path]:
    """Put both tokenizers into ``run``, if need be, and give their folders by the text encoder's name.

    Encoders that are gone on with keep their model's own.
    """
    folders = {part: run / "tokenizers" / part for part in PADDING}
    for part, folder in folders.items():
        if not folder.exists():
            with replacing(folder) as aside:
                if start is None:
                    write_tokenizer(aside, *train_tokenizer(), PADDING[part])
                else:
                    shutil.copytree(_model(start).checkpoint.tokenizers[part], aside)
    return folders


def _model(path: Path) -> Model:
    return Model(name=str(path), path=path)


def _taken(start: Path, part: str) -> Any:
    """Read a network of a model to train it further, in float32."""
    network = _model(start).network(part, dtype=torch.float32)
    if network.layout != getattr(MINI_SDXL, part):
        raise InputError(f"{start}: its {part} has another layout than the miniature's")
    return network.requires_grad_(True).train()


def _taken_trio(model: Path) -> ContrastiveTrio:
    """Both text encoders and the image encoder of a model; the first one's projection, not kept, is new."""
    trio = ContrastiveTrio()
    trio.text_encoder = _taken(model, "text_encoder")
    trio.text_encoder_2 = _taken(model, "text_encoder_2")
    trio.image_encoder = load_image_encoder(model).requires_grad_(True)
    return trio


def _load(module: Network, folder: Path) -> Network:
    """Fill a module with what an earlier training in ``folder`` left."""
    if not _weights(folder).exists():
        raise NotFoundError(
            f"{_weights(folder)} is missing: train {folder.name!r} first, in the same run, "
            "or go on with a model's with --from"
        )
    module.load_state_dict(read_tensors(_weights(folder)))
    return module


def _weights(folder: Path) -> Path:
    return folder / "trained.safetensors"


def _save(module: nn.Module, folder: Path) -> Path:
    with replacing(_weights(folder)) as aside:
        write_tensors(aside, module.state_dict(), {})
    return _weights(folder)
