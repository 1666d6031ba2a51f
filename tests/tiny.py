"""Models with a published UNet's blocks and CLIP's vocabulary, everything else as small as can be."""

from dataclasses import replace

from ssd1b.layouts import SSD_1B, ModelLayout, TextLayout, UNetLayout, VAELayout


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
