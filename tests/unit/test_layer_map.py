"""The layer map: each of the student's tensors has one of the teacher's, and the rest is what was removed."""

import itertools
from dataclasses import replace

import pytest
import torch

from ssd1b.errors import InputError
from ssd1b.layer_map import BLOCK_RULES, LayerMap, explicit, first, most_important, parameters
from ssd1b.layouts import KOALA_1B, KOALA_700M, SDXL, SDXL_MINI, SSD_1B, SSD_1B_MINI, UNETS, VEGA, UNetLayout
from ssd1b.models.unet import UNet

SMALLER = {name: layout for name, layout in UNETS.items() if name != "sdxl"}


@pytest.mark.parametrize("student", SMALLER.values(), ids=SMALLER)
@pytest.mark.parametrize("rule", ["inferred", "first"])
def test_every_tensor_of_a_published_student_has_its_own_in_sdxl(student: UNetLayout, rule: str) -> None:
    found = LayerMap.between(student, SDXL, BLOCK_RULES[rule]).keys
    with torch.device("meta"):
        ours, theirs = UNet(student).state_dict(), UNet(SDXL).state_dict()
    assert found.keys() == ours.keys()
    assert len(set(found.values())) == len(found), "no tensor of the teacher is taken twice"
    assert all(ours[key].shape == theirs[source].shape for key, source in found.items())


def test_ssd_1b_lacks_36_blocks_a_resnet_and_the_middle_transformer() -> None:
    removed = LayerMap.between(SSD_1B, SDXL).removed
    assert removed.count("mid_block.attentions.0") == removed.count("mid_block.resnets.1") == 1
    blocks = [name for name in removed if "transformer_blocks" in name]
    assert len(blocks) == 26 == len(removed) - 2  # and the ten of the middle, which went as a whole
    assert [name for name in removed if name.startswith("down_blocks.2.attentions.1")] == [
        f"down_blocks.2.attentions.1.transformer_blocks.{block}" for block in (3, 4, 5, 7, 8, 9)
    ]
    assert not any(name.startswith("up_blocks.0.attentions.2") for name in removed), "kept at ten"
    assert parameters(SSD_1B) == 1_331_334_404


@pytest.mark.parametrize(("rule", "sources"), [("inferred", (0, 1, 2, 6)), ("first", (0, 1, 2, 3))])
def test_which_blocks_stay_is_the_rules_choice(rule: str, sources: tuple[int, ...]) -> None:
    found = LayerMap.between(SSD_1B, SDXL, BLOCK_RULES[rule]).keys
    for position, source in enumerate(sources):
        key = "up_blocks.0.attentions.1.transformer_blocks.{}.attn2.to_k.weight"
        assert found[key.format(position)] == key.format(source)
    assert found["up_blocks.1.attentions.2.proj_in.weight"] == "up_blocks.1.attentions.2.proj_in.weight"


@pytest.mark.parametrize("student", [KOALA_1B, KOALA_700M], ids=["koala-1b", "koala-700m"])
def test_on_the_way_up_the_last_resnet_takes_the_finer_skip(student: UNetLayout) -> None:
    found = LayerMap.between(student, SDXL).keys
    for block in range(3):
        assert (
            found[f"up_blocks.{block}.resnets.1.conv1.weight"] == f"up_blocks.{block}.resnets.2.conv1.weight"
        )
    assert found["up_blocks.0.attentions.1.norm.weight"] == "up_blocks.0.attentions.2.norm.weight"
    assert found["down_blocks.1.resnets.0.conv1.weight"] == "down_blocks.1.resnets.0.conv1.weight"


def test_a_student_can_be_the_teacher_of_a_smaller_one() -> None:
    assert LayerMap.between(VEGA, SSD_1B).keys.keys() < LayerMap.between(SSD_1B, SDXL).keys.keys()
    assert LayerMap.between(SDXL, SDXL).removed == []


def test_a_student_cut_in_stages_has_a_map_to_the_first_teacher() -> None:
    cut, again = LayerMap.between(SSD_1B, SDXL), LayerMap.between(VEGA, SSD_1B, first)
    whole = again.through(cut)
    assert (whole.student, whole.teacher) == (VEGA, SDXL)
    assert whole.keys == {key: cut.keys[source] for key, source in again.keys.items()}
    with pytest.raises(InputError, match="do not follow"):
        cut.through(again)


def test_the_students_weights_are_the_teachers() -> None:
    teacher = UNet(SDXL_MINI).state_dict()
    mapped = LayerMap.between(SSD_1B_MINI, SDXL_MINI)
    student = UNet(SSD_1B_MINI)
    student.load_state_dict(mapped.weights(teacher))
    ours = student.state_dict()
    assert all(ours[key].equal(teacher[source]) for key, source in mapped.keys.items())


def test_named_blocks_stay_and_the_rule_fills_the_rest() -> None:
    named = {"down_blocks.2.attentions.0": (0, 3, 8, 9)}
    found = LayerMap.between(SSD_1B, SDXL, explicit(named, otherwise=first)).modules
    blocks = [
        found[f"down_blocks.2.attentions.{which}.transformer_blocks.{position}"].rpartition(".")[2]
        for which, position in itertools.product((0, 1), range(4))
    ]
    assert blocks == ["0", "3", "8", "9", "0", "1", "2", "3"]


def test_the_most_important_blocks_stay_in_their_order() -> None:
    importance = {
        f"{name}.transformer_blocks.{block}": float(block % 4)
        for name in ("down_blocks.2.attentions.0", "mid_block.attentions.0")
        for block in range(10)
    }
    choice = most_important(importance)
    assert choice("down_blocks.2.attentions.0", 10, 4) == (2, 3, 6, 7)
    assert choice("mid_block.attentions.0", 10, 10) == tuple(range(10))


@pytest.mark.parametrize("blocks", [(0, 1, 2), (0, 1, 2, 10), (0, 1, 1, 2), (3, 2, 1, 0), (-1, 0, 1, 2)])
def test_blocks_that_cannot_be_kept_are_an_error(blocks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"4 different ones of 0 to 9"):
        LayerMap.between(SSD_1B, SDXL, explicit({"down_blocks.2.attentions.0": blocks}))


def test_only_a_teacher_that_embeds_the_guidance_scale_has_a_student_that_does() -> None:
    embedding = replace(SDXL, guidance_embed_dim=256)
    plain = LayerMap.between(SSD_1B, embedding).keys
    assert plain == LayerMap.between(SSD_1B, SDXL).keys
    with pytest.raises(InputError, match=r"cond_proj\.weight has the shape"):
        assert LayerMap.between(replace(SSD_1B, guidance_embed_dim=256), SDXL).keys


def test_what_is_no_part_of_the_teacher_is_an_error() -> None:
    with pytest.raises(InputError, match=r"2 transformer blocks in the student, .* has 1"):
        LayerMap.between(SSD_1B, VEGA)
    with pytest.raises(InputError, match="channels"):
        LayerMap.between(SSD_1B_MINI, SDXL)
    with pytest.raises(InputError, match="2 resnets in the student, 1 in the teacher"):
        LayerMap.between(SSD_1B, KOALA_700M)
    with pytest.raises(InputError, match="the teacher has none"):
        LayerMap.between(replace(KOALA_700M, mid=0), KOALA_700M)
