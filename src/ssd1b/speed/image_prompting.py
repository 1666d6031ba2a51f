"""Image prompts: pictures read by an image encoder and an IP-Adapter, once for all steps of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssd1b.adapters.ip_adapters import block_names, open_ip_adapter
from ssd1b.controls import MAX_BYTES
from ssd1b.decoding import read_picture
from ssd1b.errors import InputError
from ssd1b.files import named
from ssd1b.image_prompts import ImagePrompt
from ssd1b.inputs import InputFile
from ssd1b.layouts import IPAdapterLayout, UNetLayout, VisionLayout
from ssd1b.models.attention import KeysValues
from ssd1b.models.unet import PromptKV
from ssd1b.speed.backends import TorchBackend
from ssd1b.weights.checkpoint import Checkpoint
from ssd1b.weights.files import is_finite
from ssd1b.weights.image_encoder import open_image_encoder

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of each colour, 0 to 1, as CLIP normalises pictures (openai/CLIP ``clip.py``)."""


@dataclass(slots=True, kw_only=True)
class ImagePrompting:
    """Keys and values that IP-Adapters compute from pictures, for a loaded model.

    Neither they nor the image encoders stay in memory: an encoder may be larger than the UNet, and what they
    read is small, and stays for the next run.

    Attributes:
        backend: prepares the networks.
        unet: of the model.
    """

    backend: TorchBackend
    unet: UNetLayout
    _read: dict[tuple[InputFile, ...], list[KeysValues]] = field(default_factory=dict)

    def guide(self, prompts: Sequence[ImagePrompt], steps: int) -> "ImageGuide":
        """Read the pictures of a run, and forget those of earlier runs.

        Raises:
            InputError: a file is gone, has changed, or is of another kind; networks do not fit each other or
                the model; or no part of the UNet has a name that is given.
        """
        blocks = block_names(self.unet)
        for prompt in prompts:
            if not any(map(prompt.counts_in, blocks)):
                raise InputError(
                    f"ip-adapter: this model has no cross-attention in {', '.join(prompt.layers)}"
                )
        wanted = {(each.adapter, each.encoder, each.picture): each for each in prompts}
        self._read = {key: each for key, each in self._read.items() if key in wanted}
        for key, prompt in wanted.items():
            if key not in self._read:
                self._read[key] = self._keys_values(prompt)
        return ImageGuide([(each, self._chosen(each, blocks)) for each in prompts], steps)

    def _chosen(self, prompt: ImagePrompt, blocks: Sequence[str]) -> list[KeysValues | None]:
        """Return keys and values for the blocks in which a prompt counts, with its scale in the values."""
        pairs = self._read[prompt.adapter, prompt.encoder, prompt.picture]
        return [
            (k, v * prompt.scale) if prompt.counts_in(name) else None
            for name, (k, v) in zip(blocks, pairs, strict=True)
        ]

    @torch.inference_mode()
    def _keys_values(self, prompt: ImagePrompt) -> list[KeysValues]:
        """Read a picture: keys and values for each block, of nothing first and then of the picture."""
        checkpoint = open_ip_adapter(prompt.adapter.verified(most=MAX_BYTES), self.unet)
        layout = checkpoint.part("ip_adapter").layout
        assert isinstance(layout, IPAdapterLayout)
        embeds = self._embeds(prompt, layout)
        found: list[KeysValues] = self.backend.load_control(checkpoint)(embeds)
        if not all(is_finite(tensor) for pair in found for tensor in pair):
            raise InputError(
                f"{named(prompt.adapter.path)}: with {named(prompt.encoder.path)} it gives NaN or infinity: "
                "one of them is damaged, or overflows in this number format"
            )
        return found

    def _embeds(self, prompt: ImagePrompt, adapter: IPAdapterLayout) -> Tensor:
        """Encode nothing and the picture, ``[2, ...]``, as the kind of adapter takes it.

        For the plain kind nothing is a zero embedding, for "plus" a picture of zeros, as in the reference.
        """
        checkpoint = open_image_encoder(prompt.encoder.verified(most=MAX_BYTES))
        layout = _fitting_encoder(prompt, checkpoint, adapter)
        pixels = clip_pixels(prompt.picture, layout.image_size).to(self.backend.device, self.backend.dtype)
        encoder = self.backend.load_control(checkpoint)
        if adapter.resampler is None:
            embeds = encoder(pixels)
            return torch.cat([torch.zeros_like(embeds), embeds])
        return encoder.states(torch.cat([torch.zeros_like(pixels), pixels]))


def check_image_prompt(prompt: ImagePrompt, unet: UNetLayout) -> None:
    """Check from their headers that an IP-Adapter fits a UNet, and its image encoder.

    Raises:
        InputError: it does not, or a file is damaged.
    """
    adapter = open_ip_adapter(Path(prompt.adapter.path), unet).part("ip_adapter").layout
    assert isinstance(adapter, IPAdapterLayout)
    _fitting_encoder(prompt, open_image_encoder(Path(prompt.encoder.path)), adapter)


def _fitting_encoder(prompt: ImagePrompt, encoder: Checkpoint, adapter: IPAdapterLayout) -> VisionLayout:
    """Return the layout of an image encoder, after checking that the adapter takes what it gives."""
    layout = encoder.part("image_encoder").layout
    assert isinstance(layout, VisionLayout)
    given = layout.projection_dim if adapter.resampler is None else layout.hidden_size
    if given != adapter.image_dim:
        raise InputError(
            f"{named(prompt.adapter.path)}: it takes {adapter.image_dim} channels of an image encoder, "
            f"and {named(prompt.encoder.path)} gives {given}: name the right one after the picture"
        )
    return layout


def clip_pixels(picture: InputFile, side: int) -> Tensor:
    """Decode a picture, cut out its middle and normalise it for CLIP, ``[1, 3, side, side]``, float32.

    As transformers' ``CLIPImageProcessor``: the shorter side is resized with bicubic interpolation, then the
    middle is cut out.

    Raises:
        InputError: see ``decoding.read_picture``.
    """
    from PIL import Image

    pixels = read_picture(picture)
    width, height = pixels.size
    shorter = min(width, height)
    size = (side * width // shorter, side * height // shorter)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    pixels = pixels.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    levels = torch.from_numpy(np.asarray(pixels).transpose(2, 0, 1).copy()).float() / 255
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (_MEAN, _DEVIATION))
    return ((levels - mean) / deviation)[None]


class ImageGuide:
    """Adds the keys and values of image prompts to those of the texts, in the steps of one run.

    Args:
        prompts: each with keys and values ``[2, heads, T, head_dim]``, of nothing and of its picture, for
            each transformer block in execution order; None where it does not count.
        steps: number of steps of the run.
    """

    def __init__(
        self, prompts: Sequence[tuple[ImagePrompt, Sequence[KeysValues | None]]], steps: int
    ) -> None:
        self._prompts = prompts
        self._steps = steps
        self._pictures = lru_cache(maxsize=4)(self._pictures_of)

    def __call__(self, texts: PromptKV, step: int, count: int, *, pair: bool) -> PromptKV:
        """Add the pictures that are active in a step to the texts.

        Args:
            texts: for all images; of both prompts if ``pair``, the negative ones first.
            step: from 0.
            count: number of images.
            pair: whether there are two prompts for each image.
        """
        active = tuple(prompt.active(step, self._steps) for prompt, _ in self._prompts)
        if not any(active):
            return texts
        pictures = self._pictures(active, count, pair)
        pairs = zip(texts.keys_values, pictures, strict=True)
        return texts._replace(keys_values=[(*text, *picture) for text, picture in pairs])

    def _pictures_of(self, active: tuple[bool, ...], count: int, pair: bool) -> list[tuple[Tensor, ...]]:
        """Return keys and values of the active pictures for each block, for all images."""
        found = [each for (_, each), counts in zip(self._prompts, active, strict=True) if counts]
        rows = slice(0 if pair else 1, None)
        return [
            tuple(
                tensor[rows].repeat_interleave(count, dim=0)
                for each in block if each is not None
                for tensor in each
            )
            for block in zip(*found, strict=True)
        ]  # fmt: skip
