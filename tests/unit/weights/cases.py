"""Layouts and weights that the tests of ssd1b.weights share."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from ssd1b.layouts import (
    SDXL_MINI,
    SSD_1B_MINI,
    UNETS,
    Level,
    ModelLayout,
    UNetLayout,
)
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE

PUBLISHED = {**UNETS, "mini-sdxl": SDXL_MINI, "mini-ssd-1b": SSD_1B_MINI}


def modules(layout: ModelLayout, device: str = "meta") -> dict[str, nn.Module]:
    with torch.device(device):
        return {
            "unet": UNet(layout.unet),
            "vae": VAE(layout.vae),
            "text_encoder": TextEncoder(layout.text_encoder),
            "text_encoder_2": TextEncoder(layout.text_encoder_2),
        }


def random_weights(layout: ModelLayout) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        part: {
            name: torch.randn(tensor.shape, generator=generator) * 0.1
            for name, tensor in module.state_dict().items()
        }
        for part, module in modules(layout).items()
    }


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def unet_shapes(layout: UNetLayout) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(UNet(layout))


@st.composite
def unet_layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Fields for ``unet_layout``: any UNet of the kind in layouts.py that diffusers can hold too.

    Plain fields, because the run-time type checks of layouts draw random numbers, which hypothesis forbids.
    """
    depth = st.integers(1, 3)
    levels = []
    for i in range(draw(st.integers(1, 4))):
        resnets = draw(st.integers(1, 3))
        down, up = (
            tuple(draw(depth) if attended else 0 for _ in range(number))
            for number, attended in ((resnets, draw(st.booleans())), (resnets + 1, draw(st.booleans())))
        )
        levels.append({"channels": 8 * (i + 1), "down": down, "up": up})
    if not any(any(level["down"] + level["up"]) for level in levels):
        levels[0]["up"] = (1,) * len(levels[0]["up"])
    return {
        "levels": levels,
        "mid": draw(st.sampled_from([None, 0, levels[-1]["down"][0] or 2])),
        "head_dim": draw(st.sampled_from([2, 4, 8])),
        "cross_attention_dim": draw(st.integers(1, 9)),
        "pooled_dim": draw(st.integers(1, 9)),
        "time_ids_dim": draw(st.sampled_from([2, 4])),
        "norm_groups": draw(st.sampled_from([2, 4])),
        "guidance_embed_dim": draw(st.sampled_from([None, 6])),
        "in_channels": draw(st.sampled_from([4, 9])),
    }


def unet_layout(drawn: dict[str, Any]) -> UNetLayout:
    return UNetLayout(**{**drawn, "levels": tuple(Level(**level) for level in drawn["levels"])})


def hints(layout: UNetLayout) -> dict[str, int]:
    """What shapes do not tell of a UNet."""
    return {name: getattr(layout, name) for name in ("head_dim", "norm_groups", "time_ids_dim")}
