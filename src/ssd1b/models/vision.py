"""CLIP's image encoder: for IP-Adapters, and with the second text encoder for the CLIP score."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssd1b.layouts import VisionLayout
from ssd1b.models.text import EPS, TextLayer

IMAGE_ENCODER = "image_encoder"
"""Name of the image encoder's folder in a model's folder, and of the network in a checkpoint."""


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


class _Embeddings(nn.Module):
    """Patches as tokens, after one for the whole image, each with its position."""

    def __init__(self, layout: VisionLayout) -> None:
        super().__init__()
        channels, patch = layout.hidden_size, layout.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(channels))
        self.patch_embedding = nn.Conv2d(3, channels, patch, stride=patch, bias=False)
        positions = torch.zeros((layout.image_size // patch) ** 2 + 1, channels)
        self.position_embedding = nn.Embedding(len(positions), channels, _weight=positions)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W] -> [B, 1 + patches, C]``."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        whole = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class _VisionModel(nn.Module):
    """CLIP's image transformer, without projection."""

    def __init__(self, layout: VisionLayout) -> None:
        super().__init__()
        self.embeddings = _Embeddings(layout)
        self.pre_layrnorm = nn.LayerNorm(layout.hidden_size, eps=EPS)  # the published name
        layers = nn.ModuleList(TextLayer(layout) for _ in range(layout.layers))
        for layer in layers:
            cast(Any, layer).self_attn.attend = F.scaled_dot_product_attention  # not causal
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(layout.hidden_size, eps=EPS)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 3, H, W]`` -> states of the penultimate and of the last layer, ``[B, T, C]``."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        *layers, last = cast(nn.ModuleList, self.encoder["layers"])
        for layer in layers:
            x = layer(x)
        return x, last(x)


class ImageEncoder(nn.Module):
    """Encoder of images into the space of its text encoder; keys as in published files."""

    def __init__(self, layout: VisionLayout) -> None:
        super().__init__()
        self.layout = layout
        self.vision_model = _VisionModel(layout)
        self.visual_projection = nn.Linear(layout.hidden_size, layout.projection_dim, bias=False)

    def forward(self, pixels: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch projection"]:
        """Embed images of the encoder's size, without normalisation."""
        _, last = self.vision_model(pixels)
        return self.visual_projection(self.vision_model.post_layernorm(last[:, 0]))

    def states(self, pixels: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch tokens channels"]:
        """Return the states of the penultimate layer, for the whole image and for each patch."""
        return self.vision_model(pixels)[0]
