"""CLIP score: cosine similarity of image and prompt in the embedding space of the model's own CLIP pair.

Hessel et al. 2021 (2104.08718). The published score multiplies the cosine by 2.5 and clamps it at zero; here
it is the plain cosine, which loses no information.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ssd1b.errors import NotFoundError
from ssd1b.images import to_pixels
from ssd1b.layouts import CLIP_VISION_MINI
from ssd1b.models.text import TextEncoders
from ssd1b.models.vision import IMAGE_ENCODER, ImageEncoder
from ssd1b.weights.files import read_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """An image encoder and the text encoders it was trained with."""

    image_encoder: ImageEncoder
    text: TextEncoders

    @classmethod
    def load(cls, model: Path, text: TextEncoders) -> "ClipScore":
        """Load the image encoder from a miniature's folder.

        Raises:
            InputError: the model has none.
        """
        return cls(image_encoder=load_image_encoder(model), text=text)

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str]
    ) -> Float[Tensor, "images prompts"]:
        """Cosine of every image with every prompt, -1 to 1."""
        side = self.image_encoder.layout.image_size
        pixels = torch.cat([to_pixels(image.resize((side, side))) for image in images])
        texts = self.text.encode(self.text.tokenize(prompts)).pooled.float()
        return F.normalize(self.image_encoder(pixels), dim=-1) @ F.normalize(texts, dim=-1).T


def load_image_encoder(model: Path) -> ImageEncoder:
    """Load the image encoder from a miniature's folder, in float32.

    Raises:
        InputError: there is none.
    """
    weights = model / IMAGE_ENCODER / "model.safetensors"
    if not weights.exists():
        raise NotFoundError(f"{model} has no image encoder ({weights} is missing), so no CLIP score")
    encoder = ImageEncoder(CLIP_VISION_MINI)
    encoder.load_state_dict({name: tensor.float() for name, tensor in read_tensors(weights).items()})
    return encoder.requires_grad_(False).eval()
