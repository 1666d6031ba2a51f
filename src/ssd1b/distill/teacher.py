"""A model to learn from: described first, loaded network by network when it is needed."""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from ssd1b.diffusion.schedule import NoiseSchedule
from ssd1b.errors import InputError
from ssd1b.layouts import CLIP_BIGG, CLIP_L, MINI_SDXL, NAMED, SDXL, ModelLayout, UNetLayout
from ssd1b.models.text import TextEncoder, TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.training.objective import Objective
from ssd1b.weights import hub
from ssd1b.weights.checkpoint import Checkpoint, ModelInfo
from ssd1b.weights.loading import load_component
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.vocabulary import tokenizers

Network = TypeVar("Network", bound=nn.Module)

FULL_SIZE = ModelLayout(name="sdxl", unet=SDXL, text_encoder=CLIP_L, text_encoder_2=CLIP_BIGG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A whole model on disk.

    Attributes:
        name: as it was given.
        commit: the hub's, None for anything else.
        checkpoint: where its weights are.
        info: everything else.
        prediction: what its UNet was said to predict; None left it to its files.
    """

    name: str
    commit: str | None
    checkpoint: Checkpoint
    info: ModelInfo
    prediction: str | None = None

    @property
    def identity(self) -> dict[str, str | None]:
        """Which model it is, for what remembers it."""
        said = {} if self.prediction is None else {"prediction": self.prediction}
        return {"model": self.name, "commit": self.commit, **said}

    @classmethod
    def find(cls, model: str, *, offline: bool = False, prediction: str | None = None) -> "Teacher":
        """Find a model, downloading it if it must be; ``prediction`` as ``Pipeline.load``'s.

        Raises:
            InputError: there is none, it is not whole, or its UNet takes more than latents and text.
        """
        found = hub.resolve(model, offline=offline)
        checkpoint = open_checkpoint(found.path, prediction=prediction)
        info = checkpoint.info
        check_distillable(info.layout.unet)
        return cls(name=model, commit=found.commit, checkpoint=checkpoint, info=info, prediction=prediction)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The number format of its UNet on disk, or float16 for 8-bit floats."""
        dtype = next(iter(self.checkpoint.parts["unet"].dtypes))
        return dtype if dtype.itemsize > 1 else torch.float16

    def unet(self) -> UNet:
        """The UNet on the CPU, as stored: where nothing has to be converted it stays in the mapped file."""
        with torch.device("meta"):
            unet = UNet(self.info.layout.unet)
        return self._loaded(unet, "unet", self.stored_dtype, "cpu")

    def vae(self, device: str) -> VAE:
        """The autoencoder, in float32."""
        with torch.device("meta"):
            vae = VAE(self.info.layout.vae)
        return self._loaded(vae, "vae", torch.float32, device)

    def text(self, device: str, dtype: torch.dtype) -> TextEncoders:
        """Both text encoders with their tokenizers."""
        layout = self.info.layout
        tokenizer, tokenizer_2 = tokenizers(self.info)
        with torch.device("meta"):
            encoder, encoder_2 = TextEncoder(layout.text_encoder), TextEncoder(layout.text_encoder_2)
        return TextEncoders(
            encoder=self._loaded(encoder, "text_encoder", dtype, device),
            encoder_2=self._loaded(encoder_2, "text_encoder_2", dtype, device),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
        )

    def objective(self, text: TextEncoders, device: str, dtype: torch.dtype) -> Objective:
        """What a student of this teacher is trained for: its text encoders' words, its schedule's noise."""
        schedule = NoiseSchedule.from_config(self.info.scheduler)
        return Objective(text=text, device=device, dtype=dtype, schedule=schedule)

    def _loaded(self, network: Network, part: str, dtype: torch.dtype, device: str) -> Network:
        load_component(network, self.checkpoint, part, dtype=dtype, device=device)
        return network.requires_grad_(False).eval()


def check_distillable(layout: UNetLayout) -> None:
    """Refuse what the training has no inputs for.

    Raises:
        InputError: an inpainting or editing UNet, or one that embeds the guidance scale.
    """
    if layout.guidance_embed_dim is not None:
        raise InputError("the teacher embeds the guidance scale (LCM): take the model it was made from")
    if layout.in_channels != layout.out_channels:
        raise InputError(
            f"the teacher takes {layout.in_channels} channels, as for inpainting; only 4 are taught"
        )


def find_or_describe(model: str) -> tuple[ModelLayout, Teacher | None]:
    """A teacher's layout, and its weights if they are at hand; nothing is downloaded.

    Raises:
        InputError: neither a model at hand nor a layout of that name.
    """
    try:
        teacher = Teacher.find(model, offline=True)
    except InputError:
        if model not in NAMED:
            raise
        whole = MINI_SDXL if model.startswith("mini") else FULL_SIZE
        return replace(whole, unet=NAMED[model]), None
    return teacher.info.layout, teacher
