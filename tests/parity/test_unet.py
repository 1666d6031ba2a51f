"""The UNet against diffusers: every layout, narrowed, on the same weights."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from ssd1b.layouts import UNETS, UNetLayout
from ssd1b.models.unet import UNet
from tiny import LAYOUTS, inputs


def diffusers_unet(layout: UNetLayout) -> UNet2DConditionModel:
    """Build diffusers' own module for a layout, by its published constructor."""
    channels = [level.channels for level in layout.levels]
    attended = [any(level.down) for level in layout.levels]
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
        mid_block_type={None: None, 0: "UNetMidBlock2D"}.get(layout.mid, "UNetMidBlock2DCrossAttn"),
        layers_per_block=len(layout.levels[0].down),
        transformer_layers_per_block=[
            list(level.down) if any(level.down) else 1 for level in layout.levels[:-1]
        ]
        + [[*layout.levels[-1].down] if layout.mid in (None, 0) else layout.mid],
        reverse_transformer_layers_per_block=[
            list(level.up) if any(level.up) else 1 for level in reversed(layout.levels)
        ],
        attention_head_dim=[c // layout.head_dim for c in channels],
        cross_attention_dim=layout.cross_attention_dim,
        norm_num_groups=layout.norm_groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=layout.time_ids_dim,
        projection_class_embeddings_input_dim=6 * layout.time_ids_dim + layout.pooled_dim,
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("size", [(16, 16), (9, 14)])  # the second has odd sides at every level
def test_same_prediction(name: str, size: tuple[int, int]) -> None:
    layout = LAYOUTS[name]
    torch.manual_seed(0)
    oracle = diffusers_unet(layout).eval()
    model = UNet(layout).eval()
    model.load_state_dict(oracle.state_dict(), strict=True)
    latents, timesteps, embeds, pooled, time_ids = inputs(layout, *size)
    with torch.no_grad():
        expected = oracle(
            latents, timesteps, embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}
        ).sample
        actual = model(latents, timesteps, embeds, pooled, time_ids)
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_text_that_was_read_once_gives_the_same_prediction(name: str) -> None:
    torch.manual_seed(0)
    model = UNet(LAYOUTS[name]).eval()
    latents, timesteps, embeds, pooled, time_ids = inputs(LAYOUTS[name], 8, 8)
    with torch.no_grad():
        expected = model(latents, timesteps, embeds, pooled, time_ids)
        read = model.cross_attention_kv(embeds)
        asked = [
            module.register_forward_hook(lambda *given: pytest.fail("read again"))
            for key, module in model.named_modules()
            if key.endswith(("attn2.to_k", "attn2.to_v"))
        ]
        assert len(read.keys_values) == len(asked) / 2
        assert model(latents, timesteps, read, pooled, time_ids).equal(expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_of_no_text_nothing_is_computed_and_the_prediction_stays(name: str) -> None:
    torch.manual_seed(0)
    model = UNet(LAYOUTS[name]).eval()
    latents, timesteps, embeds, pooled, time_ids = inputs(LAYOUTS[name], 8, 8)
    embeds[0], pooled[0] = 0.0, 0.0
    rows: list[int] = []
    with torch.no_grad():
        expected = model(latents, timesteps, embeds, pooled, time_ids)
        for key, module in model.named_modules():
            if key.endswith("attn2.to_q"):
                module.register_forward_hook(lambda module, given, output: rows.append(len(output)))
        actual = model(latents, timesteps, model.cross_attention_kv(embeds, without_text=1), pooled, time_ids)
    assert set(rows) == {1}
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", UNETS)
def test_published_keys_and_shapes(name: str) -> None:
    with torch.device("meta"):
        expected = diffusers_unet(UNETS[name]).state_dict()
        actual = UNet(UNETS[name]).state_dict()
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}
