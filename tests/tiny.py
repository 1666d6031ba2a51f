"""Models with a published UNet's blocks, everything else as small as can be; published UNets, narrowed."""

from dataclasses import replace
from functools import partial

import torch

from ssd1b.layouts import (
    KOALA_700M,
    SDXL_MINI,
    SSD_1B,
    SSD_1B_MINI,
    UNETS,
    ModelLayout,
    TextLayout,
    UNetLayout,
    VAELayout,
)
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import UNetInputs, example_inputs
from ssd1b.models.vae import VAE


def tiny(unet: UNetLayout) -> ModelLayout:
    return ModelLayout(
        name="custom",
        unet=replace(
            unet,
            levels=tuple(replace(level, channels=8 * 2**i) for i, level in enumerate(unet.levels)),
            head_dim=8,
            cross_attention_dim=40,
            pooled_dim=12,
            time_ids_dim=4,
            norm_groups=4,
        ),
        vae=VAELayout(channels=(8, 16), layers_per_block=1, norm_groups=4, scaling_factor=0.5),
        text_encoder=TextLayout(
            hidden_size=16, layers=2, heads=2, intermediate_size=20, activation="quick_gelu",
            projection_dim=None,
        ),
        text_encoder_2=TextLayout(
            hidden_size=24, layers=2, heads=3, intermediate_size=28, activation="gelu", projection_dim=12,
            pad_token_id=0,
        ),
        size=32,
    )  # fmt: skip


TINY = tiny(SSD_1B)


def narrowed(layout: UNetLayout) -> UNetLayout:
    levels = tuple(replace(level, channels=32 * 2**i) for i, level in enumerate(layout.levels))
    return replace(
        layout,
        levels=levels,
        head_dim=16,
        cross_attention_dim=48,
        pooled_dim=24,
        time_ids_dim=8,
        norm_groups=8,
    )


LAYOUTS = {name: narrowed(layout) for name, layout in UNETS.items()} | {
    "mini": SDXL_MINI,
    "mini-ssd": SSD_1B_MINI,
}
"""Every published UNet, narrowed, and the miniatures'."""


def inputs(layout: UNetLayout, height: int, width: int) -> UNetInputs:
    fill = partial(torch.randn, generator=torch.Generator().manual_seed(7))
    time_ids = torch.tensor([[1024, 768, 0, 16, 1024, 1024], [64, 64, 0, 0, 128, 128]], dtype=torch.float32)
    made = example_inputs(layout, 2, height, width, tokens=11, fill=fill)
    return made._replace(timesteps=torch.tensor([999.0, 20.0]), time_ids=time_ids)


DRAWABLE = replace(
    tiny(KOALA_700M),
    vae=VAELayout(channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4, scaling_factor=0.5),
    size=64,
)
"""KOALA has the fewest blocks, and a VAE of factor 8 is what sizes on the command line are for."""


def worded_weights(layout: ModelLayout) -> dict[str, dict[str, torch.Tensor]]:
    """``random_weights`` in which words differ: a new text encoder's token embeddings are zeros."""
    weights = random_weights(layout)
    for part in ("text_encoder", "text_encoder_2"):
        for name in ("token_embedding", "position_embedding"):
            key = f"text_model.embeddings.{name}.weight"
            weights[part][key] = torch.randn(weights[part][key].shape)
    return weights


def random_weights(layout: ModelLayout) -> dict[str, dict[str, torch.Tensor]]:
    """The state of each of a model's networks, the same in every run."""
    torch.manual_seed(0)
    networks = {
        "unet": UNet(layout.unet),
        "vae": VAE(layout.vae),
        "text_encoder": TextEncoder(layout.text_encoder),
        "text_encoder_2": TextEncoder(layout.text_encoder_2),
    }
    return {part: network.state_dict() for part, network in networks.items()}
