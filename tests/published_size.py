"""Models of published shapes with random weights."""

from pathlib import Path

import torch

from ssd1b.layouts import CLIP_BIGG, CLIP_L, UNETS, ModelLayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder


def write_model(folder: Path, name: str) -> None:
    """Write a model of published shapes with small random weights, in bfloat16."""
    layout = ModelLayout(name=name, unet=UNETS[name], text_encoder=CLIP_L, text_encoder_2=CLIP_BIGG)
    with torch.device("meta"):
        parts = {
            "unet": UNet(layout.unet),
            "vae": VAE(layout.vae),
            "text_encoder": TextEncoder(CLIP_L),
            "text_encoder_2": TextEncoder(CLIP_BIGG),
        }
    torch.manual_seed(0)
    weights = {
        part: {
            key: torch.randn(value.shape, dtype=torch.bfloat16) * 0.02
            for key, value in module.state_dict().items()
        }
        for part, module in parts.items()
    }
    save_folder(folder, ModelInfo(layout=layout), weights, dtype=torch.bfloat16)
