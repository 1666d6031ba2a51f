"""Models with a published UNet's blocks, everything else as small as can be; published UNets, narrowed."""

from dataclasses import replace

import torch

from ssd1b.layouts import (
    SDXL_MINI,
    SSD_1B,
    SSD_1B_MINI,
    UNETS,
    ModelLayout,
    TextLayout,
    UNetLayout,
    VAELayout,
)


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


def inputs(layout: UNetLayout, height: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(2, 4, height, width, generator=generator)
    embeds = torch.randn(2, 11, layout.cross_attention_dim, generator=generator)
    pooled = torch.randn(2, layout.pooled_dim, generator=generator)
    time_ids = torch.tensor([[1024, 768, 0, 16, 1024, 1024], [64, 64, 0, 0, 128, 128]], dtype=torch.float32)
    return latents, torch.tensor([999.0, 20.0]), embeds, pooled, time_ids
