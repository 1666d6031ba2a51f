"""Training of the miniature's parts, each in a subfolder of one run, and assembly of the model."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import nn

from ssd1b.errors import InputError, NotFoundError, unknown
from ssd1b.evaluate.clip_score import load_image_encoder
from ssd1b.layouts import CLIP_VISION_MINI, MINI_SDXL
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.models.vision import IMAGE_ENCODER, ImageEncoder, vision_config
from ssd1b.saving import check_renewable, renewing, replacing
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.miniature import train_clip, train_control, train_judge, train_unet, train_vae
from ssd1b.tabletop.miniature.tokenizer import train_tokenizer
from ssd1b.tabletop.miniature.train_clip import ContrastiveTrio
from ssd1b.tabletop.world.scenes import WORLDS
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import Range, check
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.files import read_tensors, write_json, write_tensors
from ssd1b.weights.vocabulary import PADDING, tokenizer_of, write_tokenizer
from ssd1b.weights.writing import save_controlnet, save_folder

DEFAULTS = {"guidance_scale": 4.0, "steps": 20, "sampler": "unipc"}
"""Recommended settings of the assembled model."""

Network = TypeVar("Network", bound=nn.Module)

SETTINGS: dict[str, LoopSettings] = {
    "vae": train_vae.SETTINGS,
    "clip": train_clip.SETTINGS,
    "unet": train_unet.SETTINGS,
    "image-encoder": train_clip.LOCKED_TEXT,
    "judge": train_judge.SETTINGS,
    "control": train_control.SETTINGS,
}
"""Settings of each part: UNet after VAE and CLIP, then the image encoder again; judge and control, which need
none of these, at any time."""

FINETUNING = {
    **SETTINGS, "clip": train_clip.FINETUNING, "unet": train_unet.FINETUNING, "judge": train_judge.FINETUNING,
}  # fmt: skip
"""Settings of each part for finetuning a model's weights."""

BATCH_SIZES: dict[str, Any] = {
    "vae": Annotated[int, Range(4, 4096, multiple_of=train_vae.PER_PICTURE)],
    "clip": Annotated[int, Range(16, 4096, multiple_of=train_clip.LOOK_ALIKES)],
    "unet": Annotated[int, Range(1, 4096)],
    "image-encoder": Annotated[int, Range(16, 4096, multiple_of=train_clip.LOOK_ALIKES)],
    "judge": Annotated[int, Range(2, 4096)],
    "control": Annotated[int, Range(1, 4096)],
}
"""Allowed batch sizes: crops come in groups from one image, captions in groups of look-alikes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """The other networks of a model, with which a UNet is trained."""

    vae: VAE
    text: TextEncoders
    image_encoder: ImageEncoder
    tokenizers: dict[str, Path]


def train_part(
    part: str, run: Path, *,
    start: Path | None = None, steps: int | None = None, batch_size: int | None = None,
    seed: int | None = None, world: str = "plain", resume: bool = False, device: str = "cpu",
    notify: Callable[[str], None] = lambda message: None,
) -> Path:  # fmt: skip
    """Train one part of the miniature in ``run``; the UNet comes last and completes the model.

    The text encoders are trained together with a new UNet, and are frozen if a UNet is finetuned. The image
    encoder, which only the CLIP score needs, is aligned with them afterwards.

    Args:
        part: a key of ``SETTINGS``.
        run: folder of the whole run; each part is trained in a subfolder.
        start: a model of the same layout whose part is finetuned; for the UNet, it also provides parts that
            were not trained in ``run``. For the judge, a judge's file. For control, any miniature, to whose
            UNet it is added. Not for the image encoder, which starts from the run's model.
        steps: optimiser steps; None is the part's default. The decay keeps its share of the steps.
        batch_size: images (for the VAE, crops) per step; None is the part's default.
        seed: of images, captions and noise; None is the part's default.
        world: a key of ``WORLDS``, the same for all parts.
        resume: continue the part's training.
        device: to train on.
        notify: called with a message if the first steps will compile.

    Returns:
        The file of the part's weights, or for the UNet and the image encoder the model's folder, for control
        the ControlNet's.

    Raises:
        InputError: there is no such part, a part that this one needs is missing, or there is a run already.
    """
    if part not in SETTINGS:
        raise unknown("part", part, SETTINGS)
    if world not in WORLDS:
        raise unknown("world", world, WORLDS)
    settings = _part_settings(part, start, {"steps": steps, "batch_size": batch_size, "seed": seed})
    how: Any = {"settings": settings, "world": world, "resume": resume, "device": device}
    compiling: Any = {**how, "notify": notify}
    if part == "vae":
        first = start and _read_network(start, part)
        return _save(train_vae.train_vae(run / part, start=first, **how), run / part)
    if part == "clip":
        trio = start and _read_trio(start)
        tokenizers = _tokenizers(run, start)
        return _save(train_clip.train_clip(run / part, tokenizers, start=trio, **how), run / part)
    if part == "image-encoder":
        if start is not None:
            raise InputError("the image encoder starts from the run's model: leave --from out")
        return _train_image_encoder(run, how)
    if part == "judge":
        vae = _vae(run, Model.find("mini-sdxl", offline=True).path)
        judge = start and load_judge(start)
        return _save(train_judge.train_judge(run / part, vae, start=judge, **how), run / part)
    if part == "control":
        return _train_control(run, start or Model.find("mini-ssd-1b", offline=True).path, compiling)

    check_renewable(run / "model")
    companions = _companions(run, start)
    beside = (companions.vae.to(device), companions.text, run)
    if start is None:
        unet = train_unet.train_unet(run / part, *beside, **compiling)
    else:
        unet = train_unet.finetune_unet(run / part, _read_network(start, part), *beside, **compiling)
    _save(unet, run / part)
    return assemble(run / "model", unet, companions)


def _part_settings(part: str, start: Path | None, given: dict[str, int | None]) -> LoopSettings:
    """Return the part's settings with overrides; the decay keeps its share of the steps."""
    settings = (SETTINGS if start is None else FINETUNING)[part]
    changes = {name: value for name, value in given.items() if value is not None}
    if "batch_size" in changes:
        check(f"batch_size of {part}", changes["batch_size"], BATCH_SIZES[part])
    return replace(settings, decay_share=settings.decay_steps / settings.steps, **changes)


def _companions(run: Path, start: Path | None) -> Companions:
    """Load each network from its training in ``run``, or else from the model ``start``."""
    vae = _vae(run, start)
    if start is None or _weights(run / "clip").exists():
        trio = _load(ContrastiveTrio(), run / "clip")
        tokenizers = _tokenizers(run, start)
    else:
        trio = _read_trio(start)
        tokenizers = _model(start).checkpoint.tokenizers
    trio.requires_grad_(False).eval()
    text = TextEncoders(
        encoder=trio.text_encoder,
        encoder_2=trio.text_encoder_2,
        tokenizer=tokenizer_of(tokenizers, "text_encoder"),
        tokenizer_2=tokenizer_of(tokenizers, "text_encoder_2"),
    )
    return Companions(vae=vae, text=text, image_encoder=trio.image_encoder, tokenizers=tokenizers)


def _vae(run: Path, start: Path | None) -> VAE:
    """Load the autoencoder trained in ``run``, or else that of the model ``start``."""
    if start is None or _weights(run / "vae").exists():
        vae = _load(VAE(MINI_SDXL.vae), run / "vae")
    else:
        vae = _read_network(start, "vae")
    return vae.requires_grad_(False).eval()


def _train_image_encoder(run: Path, how: dict[str, Any]) -> Path:
    """Align the image encoder of the run's model with its text encoders."""
    model = run / "model"
    if not model.exists():
        raise NotFoundError(f"{model} is missing: train 'unet' first, in the same run")
    check_renewable(model)
    trio = _read_trio(model)
    trio.text_encoder.requires_grad_(False)
    trio.text_encoder_2.requires_grad_(False)
    trained = train_clip.train_clip(run / "image-encoder", _tokenizers(run, model), start=trio, **how)
    with renewing(model) as aside:
        shutil.copytree(model, aside, ignore=shutil.ignore_patterns(IMAGE_ENCODER))
        _save_image_encoder(trained.image_encoder, aside)
    return model


def _train_control(run: Path, start: Path, how: dict[str, Any]) -> Path:
    """Train a ControlNet on a model's UNet, and write it as a folder that diffusers opens, in bfloat16."""
    target = run / "controlnet"
    check_renewable(target)
    model = _model(start)
    text = model.text_encoders(partial(model.network, dtype=torch.float32))
    unet, vae = (model.network(part, dtype=torch.float32) for part in ("unet", "vae"))
    trained = train_control.train_control(run / "control", unet, vae.to(how["device"]), text, run, **how)
    halves = {name: tensor.bfloat16().cpu() for name, tensor in trained.state_dict().items()}
    with renewing(target) as aside:
        save_controlnet(aside, trained.control_layout, halves, {})
    return target


def assemble(target: Path, unet: UNet, companions: Companions) -> Path:
    """Write the trained parts as a model folder in diffusers' format, in float16."""
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
    """Return the folders of both tokenizers in ``run`` by text encoder, creating missing ones.

    Encoders that are finetuned keep their model's tokenizers.
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


def _read_network(start: Path, part: str) -> Any:
    """Load a network of a model for finetuning, in float32."""
    network = _model(start).network(part, dtype=torch.float32)
    if network.layout != getattr(MINI_SDXL, part):
        raise InputError(f"{start}: its {part} has another layout than the miniature's")
    return network.requires_grad_(True).train()


def _read_trio(model: Path) -> ContrastiveTrio:
    """Load the three encoders of a model; the first text encoder's projection is not stored, and is new."""
    trio = ContrastiveTrio()
    trio.text_encoder = _read_network(model, "text_encoder")
    trio.text_encoder_2 = _read_network(model, "text_encoder_2")
    trio.image_encoder = load_image_encoder(model).requires_grad_(True)
    return trio


def _load(module: Network, folder: Path) -> Network:
    """Load the weights that an earlier training in ``folder`` wrote."""
    if not _weights(folder).exists():
        raise NotFoundError(
            f"{_weights(folder)} is missing: train {folder.name!r} first, in the same run, "
            "or start from a model with --from"
        )
    module.load_state_dict(read_tensors(_weights(folder)))
    return module


def _weights(folder: Path) -> Path:
    return folder / "trained.safetensors"


def _save(module: nn.Module, folder: Path) -> Path:
    with replacing(_weights(folder)) as aside:
        write_tensors(aside, module.state_dict(), {})
    return _weights(folder)
