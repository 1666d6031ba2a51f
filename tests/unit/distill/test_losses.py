"""Losses: the terms that the paper names, all of them, in 32 bits, and none by accident."""

import pytest
import torch

from ssd1b.distill.features import LEVELS, capture_outputs
from ssd1b.distill.losses import Weights, distillation_terms
from ssd1b.errors import InputError
from ssd1b.layer_map import LayerMap
from ssd1b.layouts import KOALA_700M, SDXL, SDXL_MINI, SSD_1B, SSD_1B_MINI, VEGA
from ssd1b.models.unet import UNet

MAP = LayerMap.between(SSD_1B, SDXL)
USUAL = Weights()
SAMPLES = torch.tensor([1.0, 3.0])


def pictures(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def terms(weights: Weights = USUAL, **changes: object) -> dict[str, torch.Tensor]:
    given = {
        "target": pictures(0),
        "predicted": pictures(1),
        "predicted_by_teacher": pictures(2),
        "features": {
            "mid_block": (pictures(3), pictures(4)),
            "down_blocks.0.resnets.0": (pictures(5), pictures(6)),
        },
        "sample_weights": SAMPLES,
    }
    return distillation_terms(weights, **(given | changes))  # type: ignore[arg-type]


def test_layer_level_is_the_vendors_26_pairs() -> None:
    pairs = LEVELS["layer"](MAP)
    kinds = [name.split(".")[0] + "/" + name.split(".")[-2] for name in pairs if name != "mid_block"]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "down_blocks/resnets": 6,
        "down_blocks/attentions": 4,
        "up_blocks/resnets": 9,
        "up_blocks/attentions": 6,
    }
    assert pairs["mid_block"] == "mid_block" and len(pairs) == 26
    assert all(ours == theirs for ours, theirs in pairs.items())


def test_other_levels() -> None:
    assert LEVELS["none"](MAP) == {}
    assert list(LEVELS["block"](MAP)) == [
        "down_blocks.0.downsamplers.0", "down_blocks.1.downsamplers.0", "down_blocks.2.attentions.1",
        "up_blocks.0.upsamplers.0", "up_blocks.1.upsamplers.0", "up_blocks.2.resnets.2",
    ]  # fmt: skip
    attention = LEVELS["self-attention"](MAP)
    assert len(attention) == 34
    name = "up_blocks.0.attentions.0.transformer_blocks.{}.attn1"
    assert attention[name.format(3)] == name.format(6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("student", [VEGA, KOALA_700M], ids=["vega", "koala-700m"])
def test_every_pair_is_of_modules_that_exist(level: str, student: object) -> None:
    pairs = LEVELS[level](LayerMap.between(student, SDXL))  # type: ignore[arg-type]
    with torch.device("meta"):
        ours, theirs = UNet(student), UNet(SDXL)  # type: ignore[arg-type]
    for name, other in pairs.items():
        ours.get_submodule(name), theirs.get_submodule(other)


@pytest.mark.parametrize("level", ["layer", "block", "self-attention"])
def test_what_is_caught_has_the_same_shape_in_both_and_is_let_go(level: str) -> None:
    torch.manual_seed(0)
    layers = LayerMap.between(SSD_1B_MINI, SDXL_MINI)
    pairs = LEVELS[level](layers)
    teacher, student = UNet(SDXL_MINI), UNet(SSD_1B_MINI)
    given = (torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 77, 160), torch.randn(1, 96),
             torch.full((1, 6), 128.0))  # fmt: skip
    with (
        torch.no_grad(),
        capture_outputs(student, pairs) as ours,
        capture_outputs(teacher, pairs.values()) as theirs,
    ):
        student(*given), teacher(*given)
    assert ours.keys() == pairs.keys() and theirs.keys() == set(pairs.values())
    assert all(ours[name].shape == theirs[other].shape for name, other in pairs.items())
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))


def test_a_student_that_is_its_teacher_has_no_difference_left_but_the_task() -> None:
    same = {name: (pictures(7), pictures(7)) for name in ("a", "b")}
    found = terms(predicted=pictures(2), features=same)
    assert found["output"] == found["features"] == 0
    assert found["loss"] == found["task"] > 0


def test_the_loss_is_the_weighted_sum_and_every_term_is_told() -> None:
    found = terms(Weights(task=2.0, output=0.25, features=0.125))
    assert found.keys() == {
        "loss", "task", "output", "features", "feature/mid_block", "feature/down_blocks.0.resnets.0"
    }  # fmt: skip
    torch.testing.assert_close(
        found["features"], found["feature/mid_block"] + found["feature/down_blocks.0.resnets.0"]
    )
    expected = 2 * found["task"] + 0.25 * found["output"] + 0.125 * found["features"]
    torch.testing.assert_close(found["loss"], expected)
    direct = ((pictures(1) - pictures(0)).square().mean(dim=(1, 2, 3)) * SAMPLES).mean()
    torch.testing.assert_close(found["task"], direct)


def test_sample_weights_act_on_every_term() -> None:
    plain, doubled = terms(), terms(sample_weights=2 * SAMPLES)
    for name in plain:
        torch.testing.assert_close(doubled[name], 2 * plain[name])


def test_large_features_in_16_bits_do_not_overflow() -> None:
    ours, theirs = (torch.full((2, 4, 8, 8), value, dtype=torch.float16) for value in (300.0, -300.0))
    found = terms(features={"mid_block": (ours, theirs)}, sample_weights=torch.ones(2))
    assert found["feature/mid_block"] == 360_000.0  # above float16's largest number


def test_normalised_terms_do_not_depend_on_the_features_size() -> None:
    weights = Weights(normalised=True)
    small, large = (
        terms(weights, features={"mid_block": (scale * pictures(3), scale * pictures(4))})
        for scale in (1.0, 100.0)
    )
    torch.testing.assert_close(small["features"], large["features"], rtol=1e-4, atol=0)


def test_the_teacher_gets_no_gradient() -> None:
    ours, theirs = pictures(3).requires_grad_(), pictures(4).requires_grad_()
    by_teacher = pictures(2).requires_grad_()
    terms(features={"mid_block": (ours, theirs)}, predicted_by_teacher=by_teacher)["loss"].backward()
    assert ours.grad is not None and theirs.grad is None and by_teacher.grad is None


@pytest.mark.parametrize(
    ("given", "message"), [({"output": -0.5}, "output"), ({"task": 0, "output": 0, "features": 0}, "0")]
)
def test_weights_that_make_no_sense(given: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Weights(**{name: float(value) for name, value in given.items()})
