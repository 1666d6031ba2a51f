"""The family's published sizes, to the parameter, and what a layout literal may not say."""

import pytest
import torch

from ssd1b.layouts import (
    CLIP_BIGG,
    CLIP_L,
    SDXL_MINI,
    SSD_1B,
    SSD_1B_MINI,
    UNETS,
    Level,
    UNetLayout,
    VAELayout,
)
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE

PARAMETERS = {
    "sdxl": 2_567_463_684,
    "ssd-1b": 1_331_334_404,
    "vega": 745_225_604,
    "koala-1b": 1_161_184_324,
    "koala-700m": 782_822_724,
}
TRANSFORMER_BLOCKS = {"sdxl": 70, "ssd-1b": 34, "vega": 15, "koala-1b": 30, "koala-700m": 21}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", UNETS)
def test_parameters_and_blocks_of_each_unet(name: str) -> None:
    with torch.device("meta"):
        assert parameters(UNet(UNETS[name])) == PARAMETERS[name]
    assert UNETS[name].transformer_blocks == TRANSFORMER_BLOCKS[name]


def test_parameters_of_the_other_networks() -> None:
    with torch.device("meta"):
        assert parameters(VAE(VAELayout())) == 83_653_863
        assert parameters(TextEncoder(CLIP_L)) == 123_060_480
        assert parameters(TextEncoder(CLIP_BIGG)) == 694_659_840


def test_the_miniatures_keep_the_topology_and_the_proportion() -> None:
    def topology(layout: UNetLayout) -> tuple:
        return layout.mid, [(level.down, level.up) for level in layout.levels]

    assert topology(SDXL_MINI) == topology(UNETS["sdxl"])
    assert topology(SSD_1B_MINI) == topology(SSD_1B)
    with torch.device("meta"):
        ratio = parameters(UNet(SSD_1B_MINI)) / parameters(UNet(SDXL_MINI))
    assert PARAMETERS["ssd-1b"] / PARAMETERS["sdxl"] < ratio <= 0.53


def test_a_level_counts_one_resnet_more_on_the_way_up() -> None:
    with pytest.raises(ValueError, match="up must have 3 entries"):
        Level(channels=32, down=(0, 0), up=(0, 0))


def test_a_level_has_transformers_behind_all_its_resnets_or_none() -> None:
    with pytest.raises(ValueError, match="mixes"):
        Level(channels=32, down=(0, 1), up=(1, 1, 1))
