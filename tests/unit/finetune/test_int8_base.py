"""Frozen weights in int8; the oracle is the same network with the converted weights as plain ones."""

import copy
import gc
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssd1b.finetune import cost, int8_base
from ssd1b.finetune.cost import plan_finetune
from ssd1b.finetune.int8_base import store_in_int8
from ssd1b.finetune.layers import adapt, trained_adapters
from ssd1b.finetune.networks import Networks, prepare
from ssd1b.finetune.settings import KINDS, FinetuneSettings, make_settings
from ssd1b.finetune.writing import adapter_tensors
from ssd1b.models.unet import UNet
from ssd1b.speed.weight_only import dequantize, quantize
from ssd1b.training.gradient_checkpointing import checkpoint_gradients
from ssd1b.training.precision import computing_in, convert_frozen
from ssd1b.training.trained import Average, trained_parameters, trained_tensors
from tiny import DRAWABLE, inputs


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_base, "SMALLEST", 256)


def settings(**given: object) -> FinetuneSettings:
    return make_settings(None, {"rank": 3, "data.path": "x", "int8_base": True, **given}, size=64)


def made(chosen: FinetuneSettings, dtype: torch.dtype = torch.float32) -> tuple[UNet, UNet]:
    """A UNet with frozen weights in int8 and moved adapters, and one with the converted weights."""
    torch.manual_seed(0)
    stored = UNet(DRAWABLE.unet).eval().requires_grad_(False)
    plain = copy.deepcopy(stored)
    store_in_int8(stored)
    convert_frozen(stored, dtype)
    weights = {f"{name}.weight": each.weight for name, each in stored.named_modules() if _stored(each)}
    assert len(weights) > 100 and len(weights) < len(plain.state_dict()), "some, not all"
    convert_frozen(plain, dtype)
    plain.load_state_dict(weights, strict=False)
    for unet in (stored, plain):
        adapt(unet, chosen)
        torch.manual_seed(1)
        for each in trained_parameters(unet).values():
            each.data.add_(0.05 * torch.randn_like(each))
    return stored, plain


def _stored(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight")


def learned(unet: UNet, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    """The prediction, and the gradients of what is trained, by the names of a file."""
    latents, timesteps, *others = inputs(DRAWABLE.unet, 8, 8)
    given = (latents.to(dtype), timesteps, *(each.to(dtype) for each in others))
    predicted = computing_in(dtype, unet)(*given).float()
    predicted.square().mean().backward()
    found: dict[str, Tensor] = {}
    modules: Iterable[tuple[str, Any]] = unet.named_modules()
    for name, each in modules:
        if hasattr(each, "tensors"):
            owner = name.removesuffix(".adapter").split(".parametrizations.")[0]
            found |= {f"{owner}.{role}": value.grad for role, value in each.tensors.items()}
    return predicted.detach(), found


LAYERS = [
    (nn.Linear(20, 30), (2, 5, 20)),
    (nn.Linear(20, 30, bias=False), (3, 20)),
    (nn.Conv2d(12, 16, 3, padding=1), (2, 12, 6, 5)),
    (nn.Conv2d(12, 16, 3, padding=1, stride=2), (2, 12, 7, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_and_its_gradient_are_those_of_the_converted_weight(
    layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    exact = copy.deepcopy(layer).to(dtype).requires_grad_(False)
    stored = nn.Sequential(copy.deepcopy(layer).requires_grad_(False))
    store_in_int8(stored)
    convert_frozen(stored, dtype)
    exact.weight.copy_(dequantize(*quantize(layer.weight), dtype))
    torch.manual_seed(0)
    ours, theirs = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))
    theirs.data.copy_(ours)
    for module, x in ((stored, ours), (exact, theirs)):
        y = module(x)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype)).sum().backward()
    assert stored(ours).equal(exact(theirs))
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_gradients_are_those_of_the_converted_network(kind: str) -> None:
    stored, plain = made(settings(kind=kind, targets="all"))
    (ours, gradients), (theirs, wanted) = learned(stored), learned(plain)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == wanted.keys() and len(wanted) > 100
    for name, each in wanted.items():
        torch.testing.assert_close(gradients[name], each, rtol=1e-3, atol=1e-7, msg=name)
    assert all(each.grad is None for each in stored.parameters() if not each.requires_grad)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradient_checkpointing_in_16_bits_changes_no_gradient(kind: str) -> None:
    (stored, _), (again, _) = (made(settings(kind=kind), torch.bfloat16) for _ in range(2))
    checkpoint_gradients(again)
    (ours, gradients), (theirs, wanted) = learned(stored, torch.bfloat16), learned(again, torch.bfloat16)
    assert ours.equal(theirs)
    assert all(gradients[name].equal(each) for name, each in wanted.items())
    stored_in_int8 = [each for each in again.parameters() if each.dtype is torch.int8]
    assert len(stored_in_int8) > 100, "conversions to 16 bits leave them as they are"


def test_the_backward_pass_keeps_no_converted_weight() -> None:
    stored, plain = made(settings())

    def kept(unet: UNet) -> int:
        found: dict[int, int] = {}
        parameters = {each.untyped_storage().data_ptr() for each in unet.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            if (place := tensor.untyped_storage().data_ptr()) not in parameters:
                found[place] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            unet(*inputs(DRAWABLE.unet, 8, 8))
        return sum(found.values())

    assert kept(stored) <= kept(plain)


def test_int8_values_are_frozen_parameters_that_an_average_shares_and_no_checkpoint_has() -> None:
    stored, _ = made(settings())
    values = {id(each) for each in stored.parameters() if each.dtype is torch.int8}
    average = Average(stored, 0.5).module
    assert values == {id(each) for each in average.parameters() if each.dtype is torch.int8}
    assert all(each.is_floating_point() for each in trained_tensors(stored).values())
    (before, _), moved = learned(stored), next(iter(trained_parameters(average).values()))
    moved.data.add_(1)
    with torch.no_grad():
        given = inputs(DRAWABLE.unet, 8, 8)
        assert stored(*given).equal(before) and not average(*given).equal(before), "each with its adapters"


def test_the_float_weights_leave_memory() -> None:
    unet = UNet(DRAWABLE.unet).requires_grad_(False)
    gone = [weakref.ref(each) for name, each in unet.named_parameters() if name.endswith("to_q.weight")]
    before = sum(each.nbytes for each in unet.parameters())
    prepare(Networks(unet, None, {}), settings())
    gc.collect()
    assert gone and all(each() is None for each in gone)
    frozen = sum(each.nbytes for each in unet.parameters() if not each.requires_grad)
    assert frozen < before / 2.5, "a quarter, with biases, norms and scales of tiny layers"


@pytest.mark.parametrize("names", ["kohya", "diffusers"])
def test_the_file_has_the_tensors_of_a_plain_training(names: str) -> None:
    stored, plain = made(settings())
    ours, theirs = (adapter_tensors(trained_adapters(each), DRAWABLE, names) for each in (stored, plain))
    assert ours.keys() == theirs.keys()
    assert all(each.equal(ours[name]) and each.dtype is torch.float32 for name, each in theirs.items())


def test_the_dry_run_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "training_dtype", lambda device: torch.bfloat16)
    plans = [plan_finetune(DRAWABLE, None, settings(int8_base=stored), "cpu") for stored in (False, True)]
    networks = Networks(UNet(DRAWABLE.unet), None, {})
    prepare(networks, settings())
    convert_frozen(networks, torch.bfloat16)
    frozen = [each for each in networks.parameters() if not each.requires_grad]
    assert plans[1].memory["frozen weights"] == sum(each.nbytes for each in frozen)
    assert plans[1].memory["frozen weights"] < 0.7 * plans[0].memory["frozen weights"]
    largest = max(each.numel() for each in frozen if each.dtype is torch.int8)
    assert [plan.memory["computed weights"] for plan in plans] == [0, 2 * largest], "one at a time"
    assert plans[0].parameters == plans[1].parameters and plans[0].trained == plans[1].trained


def test_a_file_can_ask_for_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("int8_base = true\n[data]\npath = 'y'\n")
    assert make_settings(str(file), {}, size=64).int8_base
