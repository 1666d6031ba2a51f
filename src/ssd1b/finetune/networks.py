"""The networks of a fine-tuning: the UNet and, by method, text encoders, a word's vectors or a ControlNet."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ssd1b.adapters.names import PARTS
from ssd1b.embeddings import ENCODERS
from ssd1b.finetune.int8_base import store_in_int8
from ssd1b.finetune.layers import adapt
from ssd1b.finetune.prior import Predict
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.models.controlnet import Controlled, ControlNet
from ssd1b.models.text import Conditioning, TextEncoder, TextEncoders, Tokens, encode_tokens
from ssd1b.models.unet import UNet
from ssd1b.training.batches import LatentBatch, control_levels
from ssd1b.training.precision import computing_in


class Networks(nn.Module):
    """The networks of a run as one module: those that are trained, and those that gradients pass through.

    Args:
        unet: the UNet.
        encoders: the text encoders, if captions are encoded in each step; else None.
        vectors: of a new word, by ``ENCODERS``, ``[n, hidden_size]`` in float32.
        controlnet: that is trained, if there is one.
    """

    def __init__(
        self,
        unet: UNet,
        encoders: tuple[TextEncoder, TextEncoder] | None,
        vectors: Mapping[str, Tensor],
        controlnet: ControlNet | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet
        self.text_encoder, self.text_encoder_2 = encoders or (None, None)
        self.vectors = nn.ParameterDict({name: nn.Parameter(each) for name, each in vectors.items()})

    @property
    def parts(self) -> dict[str, UNet | TextEncoder]:
        """The networks by ``PARTS``; text encoders only if they are there."""
        named = (getattr(self, part) for part in PARTS)
        return {part: each for part, each in zip(PARTS, named, strict=True) if each is not None}

    def predictor(self, controls: Tensor | None, dtype: torch.dtype) -> Predict:
        """Return the network that predicts the noise of a batch, computing in a number format.

        Args:
            controls: what the ControlNet reads, see ``LatentBatch``; without a ControlNet they do not matter.
            dtype: the number format.
        """
        if self.controlnet is None:
            return computing_in(dtype, self.unet)
        assert controls is not None
        picture = control_levels(controls, self.unet.conv_in.weight.device, dtype)
        return partial(computing_in(dtype, Controlled(self.unet, self.controlnet)), picture)

    @property
    def word(self) -> dict[str, Tensor]:
        """The vectors of the new word, by ``ENCODERS``."""
        return {name: each.detach() for name, each in self.vectors.items()}

    def encode(self, tokens: Sequence[Tokens], dtype: torch.dtype) -> Conditioning:
        """Encode captions with the encoders in training, computing in a number format."""
        assert self.text_encoder is not None and self.text_encoder_2 is not None
        encoders = [computing_in(dtype, each) for each in (self.text_encoder, self.text_encoder_2)]
        vectors = [self.vectors[name] if name in self.vectors else None for name in ENCODERS]
        return encode_tokens(encoders, tokens, vectors, self.unet.conv_in.weight.device)

    def encoded(self, batch: LatentBatch, dtype: torch.dtype) -> LatentBatch:
        """Encode a batch's captions, unless they were encoded before the training."""
        if self.text_encoder is None:
            return batch
        assert not isinstance(batch.text, Conditioning)
        return batch._replace(text=self.encode(batch.text, dtype))

    def text_encoders(self, text: TextEncoders) -> TextEncoders:
        """Return text encoders with those in training, if any, for generating images."""
        if self.text_encoder is None or self.text_encoder_2 is None:
            return text
        return replace(text, encoder=self.text_encoder, encoder_2=self.text_encoder_2)


def prepare(networks: Networks, settings: FinetuneSettings) -> None:
    """Freeze what the settings do not train, in int8 if they say so, and add the adapters.

    Raises:
        InputError: no module is chosen.
    """
    networks.requires_grad_(settings.method == "full")
    networks.vectors.requires_grad_(True)
    if networks.controlnet is not None:
        networks.controlnet.requires_grad_(True)
    if settings.int8_base:
        for network in networks.parts.values():
            store_in_int8(network)
    if settings.method == "lora":
        for part, network in networks.parts.items():
            adapt(network, settings, part)
