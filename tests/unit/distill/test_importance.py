"""Importance: what a block does to the output, and a layout made of the blocks that do most."""

from functools import partial

import pytest
import torch

from ssd1b.distill.importance import block_importance, fit_layout
from ssd1b.errors import InputError
from ssd1b.layer_map import LayerMap, explicit, parameters
from ssd1b.layouts import SDXL, SDXL_MINI, SSD_1B, Level, UNetLayout
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import UNetInputs, example_inputs
from ssd1b.weights.configs import unet_config, unet_layout

TINY = UNetLayout(
    mid=2,
    levels=(Level(channels=8, down=(0, 0), up=(0, 0, 0)), Level(channels=16, down=(2, 2), up=(2, 2, 2))),
    head_dim=8, cross_attention_dim=16, pooled_dim=8, time_ids_dim=8, norm_groups=4,
)  # fmt: skip


def example(seed: int) -> UNetInputs:
    fill = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    return example_inputs(TINY, 1, 8, 8, tokens=7, fill=fill)


def test_a_block_that_does_nothing_has_no_importance_and_a_strong_one_has_most() -> None:
    torch.manual_seed(0)
    unet = UNet(TINY).eval()
    idle, strong = (
        "down_blocks.1.attentions.0.transformer_blocks.1",
        "mid_block.attentions.0.transformer_blocks.0",
    )
    with torch.no_grad():
        for name, factor in ((idle, 0.0), (strong, 30.0)):
            block = unet.get_submodule(name)
            for part in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2"):
                for parameter in block.get_submodule(part).parameters():
                    parameter *= factor
    found = block_importance(unet, [example(1), example(2)])
    assert len(found) == TINY.transformer_blocks
    assert found[idle] == 0
    assert max(found, key=found.__getitem__) == strong
    assert not any(module._forward_hooks for module in unet.modules())


def test_without_data_nothing_is_measured() -> None:
    with pytest.raises(InputError, match="no examples"):
        block_importance(UNet(TINY), [])


def names(layout: UNetLayout) -> list[str]:
    with torch.device("meta"):
        modules = UNet(layout).named_modules()
    return [name for name, _ in modules if name.split(".")[-2:-1] == ["transformer_blocks"]]


@pytest.mark.parametrize("layout", [SDXL, SDXL_MINI], ids=["sdxl", "mini-sdxl"])
@pytest.mark.parametrize("share", [0.75, 0.519])
def test_a_budget_is_kept_and_used(layout: UNetLayout, share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    importance = {name: float(torch.rand((), generator=generator)) for name in names(layout)}
    student, kept = fit_layout(layout, importance, share)
    assert share - 0.02 < parameters(student) / parameters(layout) <= share
    layers = LayerMap.between(student, layout, explicit(kept))
    assert layers.student == student
    gone = [name for name in importance if name not in layers.modules.values()]
    assert min(importance[name] for name in layers.modules.values() if name in importance) > 0
    assert sum(importance[name] for name in gone) / len(gone) < 0.5


def test_the_middle_may_go_as_a_whole_and_other_transformers_keep_a_block() -> None:
    importance = {name: 0.0 if name.startswith("mid_block") else 1.0 for name in names(SDXL)}
    student, kept = fit_layout(SDXL, importance, 0.87)
    assert student.mid == 0 and "mid_block.attentions.0" not in kept
    assert student.levels == SDXL.levels
    assert parameters(SSD_1B) < parameters(student)


@pytest.mark.parametrize("share", [0.05, 0.0, 1.0])
def test_budgets_that_cannot_be_kept(share: float) -> None:
    with pytest.raises(InputError, match="parameters"):
        fit_layout(SDXL_MINI, dict.fromkeys(names(SDXL_MINI), 1.0), share)


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6, 0.519])
def test_diffusers_has_words_for_what_a_budget_leaves(share: float) -> None:
    """Its configuration has one number for the middle block and the transformer before it."""
    importance = {name: 1.0 + index % 7 for index, name in enumerate(names(SDXL_MINI))}
    student, _ = fit_layout(SDXL_MINI, importance, share)
    assert unet_layout(unet_config(student, 16), "here") == student
