"""Small IP-Adapters and image encoders, in files, with weights that show in an image."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ssd1b.layouts import SDXL_MINI, IPAdapterLayout, ResamplerLayout, VisionLayout
from ssd1b.models.ip_adapter import IPAdapter
from ssd1b.models.vision import ImageEncoder

VISION = VisionLayout(
    hidden_size=96, layers=3, heads=3, intermediate_size=64, projection_dim=40, image_size=32, patch_size=8
)
RESAMPLER = ResamplerLayout(channels=48, layers=4, heads=2, intermediate_size=192)


@torch.no_grad()
def loud(network: nn.Module, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.normal_(std=0.3)
    return {name: each.clone() for name, each in network.state_dict().items()}


def write_adapter(path: Path, *, plus: bool, seed: int) -> Path:
    """Write an IP-Adapter for SDXL's blocks at the miniature's widths."""
    widths = (48,) * 4 + (96,) * 50 + (48,) * 6 + (96,) * 10
    layout = IPAdapterLayout(
        image_dim=VISION.hidden_size if plus else VISION.projection_dim, tokens=5 if plus else 4,
        context_dim=SDXL_MINI.cross_attention_dim, blocks=widths, head_dim=SDXL_MINI.head_dim,
        resampler=RESAMPLER if plus else None,
    )  # fmt: skip
    state = loud(IPAdapter(layout), seed)
    numbered = {}
    for name, each in state.items():
        if name.startswith("ip_adapter."):
            _, index, rest = name.split(".", 2)
            name = f"ip_adapter.{2 * int(index) + 1}.{rest}"
        numbered[name] = each
    save_file(numbered, path)
    return path


def write_encoder(folder: Path) -> Path:
    """Write the image encoder of ``write_adapter``'s files into a folder beside them."""
    (folder / "image_encoder").mkdir(parents=True)
    save_file(loud(ImageEncoder(VISION), 1), folder / "image_encoder/model.safetensors")
    return folder
