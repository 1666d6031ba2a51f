"""CLIP's image encoder, by transformers; with the second text encoder it computes the CLIP score."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ssd1b.tensors import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLayout:
    """A CLIP image encoder (Dosovitskiy et al. 2021, 2010.11929) with its projection."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    projection_dim: int
    image_size: int
    patch_size: int
    activation: str = "gelu"


CLIP_VISION_MINI = VisionLayout(
    hidden_size=96, layers=4, heads=3, intermediate_size=384, projection_dim=96, image_size=128, patch_size=16
)


IMAGE_ENCODER = "image_encoder"
"""Name of the image encoder's folder in a model's folder."""


def vision_config(layout: VisionLayout) -> dict[str, Any]:
    """Make the ``config.json`` from which transformers builds the encoder."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": layout.hidden_size,
        "num_hidden_layers": layout.layers,
        "num_attention_heads": layout.heads,
        "intermediate_size": layout.intermediate_size,
        "projection_dim": layout.projection_dim,
        "image_size": layout.image_size,
        "patch_size": layout.patch_size,
        "hidden_act": layout.activation,
    }


class ImageEncoder(nn.Module):
    """Encoder of images into the space of its text encoder; keys as in published files."""

    def __init__(self, layout: VisionLayout) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # slow to import

        self.layout = layout
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_config(layout)))
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection

    def forward(self, pixels: Pixels) -> Float[Tensor, "batch projection"]:
        """Embed images of the encoder's size, without normalisation."""
        return self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)
