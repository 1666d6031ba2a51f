"""What a dry run tells: counted without weights, and right where it can be checked."""

import pytest
import torch

from ssd1b.distill.cost import Throughput, activations, measure_speed, memory, step_macs
from ssd1b.distill.layer_plot import plot_layers
from ssd1b.distill.plan import plan
from ssd1b.distill.stages import Stage, read_stages
from ssd1b.layer_map import parameters
from ssd1b.layouts import KOALA_700M, SDXL
from ssd1b.models.attention import Attention, plain_attention
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import example_inputs
from ssd1b.training.settings import LoopSettings
from tiny import tiny

TEACHER, SMALL = tiny(SDXL).unet, tiny(KOALA_700M).unet


def test_activations_are_those_that_a_real_forward_pass_keeps() -> None:
    unet = UNet(SMALL)
    for module in unet.modules():
        if isinstance(module, Attention):
            module.attend = plain_attention
    weights = {parameter.data_ptr() for parameter in unet.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(*example_inputs(SMALL, 1, 16, 16))
    real = sum(storage.nbytes() for storage in kept.values())
    counted = activations(SMALL, 16, torch.float32, "cpu")
    assert abs(counted - real) < 0.1 * real
    assert activations(SMALL, 16, torch.bfloat16, "cuda") < 0.6 * counted


def test_checkpointed_blocks_keep_their_inputs_and_one_of_them_all() -> None:
    everything = activations(SMALL, 16, torch.float32, "cuda")
    few = activations(SMALL, 16, torch.float32, "cuda", checkpointed=True)
    assert 0.1 * everything < few < 0.6 * everything
    twice = activations(SMALL, 32, torch.float32, "cuda", checkpointed=True)
    assert twice == pytest.approx(4 * few, rel=0.1)


def test_memory_knows_what_the_training_saves() -> None:
    train = LoopSettings(
        steps=1, batch_size=8, micro_batches=4, learning_rate=1e-4, decay_steps=0, optimizer="adamw-8bit",
        gradient_checkpointing=True, ema_decay=0.0,
    )  # fmt: skip
    (each,) = plan(TEACHER, [Stage(student="ssd-1b", train=train)])
    found = memory(each, 8, torch.bfloat16, "cuda")
    assert found["optimiser"] == 2 * parameters(each.layers.student)
    assert found["averaged weights"] == 0
    assert found["rounded weights"] < 0.5 * 2 * parameters(each.layers.student)
    one = activations(each.layers.student, 8, torch.bfloat16, "cuda", checkpointed=True)
    assert found["activations"] == 2 * one


def test_memory_is_four_bytes_for_each_weight_gradient_average_and_moment() -> None:
    (each,) = plan(TEACHER, [Stage(student="ssd-1b")])
    student, teacher = parameters(each.layers.student), parameters(TEACHER)
    found = memory(each, 8, torch.bfloat16, "cpu")
    assert found.pop("activations") == 16 * activations(each.layers.student, 8, torch.bfloat16, "cpu")
    assert found == {
        "student's weights": 4 * student,
        "gradients": 4 * student,
        "optimiser": 8 * student,
        "averaged weights": 4 * student,
        "teacher's weights": 2 * teacher,
        "rounded weights": 2 * student,
    }


def test_a_step_is_the_teachers_forward_and_three_of_the_students() -> None:
    assert step_macs(10, 5, 4) == 4 * (10 + 3 * 5)


def test_speed_is_the_teachers_if_its_weights_are_there() -> None:
    loaded = measure_speed(lambda: UNet(SMALL), 10**6, 8, torch.float32, "cpu", batch_size=4)
    assert isinstance(loaded, Throughput) and "forward pass in" in loaded.how and loaded.rate > 0
    assert "matrix product" in measure_speed(None, 10**6, 8, torch.float32, "cpu", batch_size=4).how
    # A pass that would take hours is not run.
    assert (
        "matrix product"
        in measure_speed(lambda: UNet(SMALL), 10**16, 8, torch.float32, "cpu", batch_size=4).how
    )


def test_the_picture_is_drawn_for_every_kind_of_cut() -> None:
    for stages in (read_stages("ssd-1b"), [Stage(student="koala-700m")]):
        assert plot_layers(plan(TEACHER, stages)).startswith(b"\x89PNG")
