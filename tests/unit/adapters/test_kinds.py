"""The change of a weight is that of the libraries that train adapters: LyCORIS and PEFT."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

from ssd1b.adapters.kinds import KINDS, ShapeError, bias_change, kind_of, rank_of, weight_change
from ssd1b.adapters.reading import _SUFFIXES

LAYERS = {
    "linear": partial(nn.Linear, 24, 64),
    "square": partial(nn.Linear, 32, 32),
    "1x1": partial(nn.Conv2d, 24, 64, 1),
    "3x3": partial(nn.Conv2d, 24, 64, 3, padding=1),
}

LORA, DORA = partial(LoConModule, "x"), {"weight_decompose": True}

MODULES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "LoRA": lambda layer: LORA(layer, 1.0, 4, 2.0),
    "LoRA rs": lambda layer: LORA(layer, 1.0, 4, 2.0, rs_lora=True),
    "LoRA tucker": lambda layer: LORA(layer, 1.0, 4, 2.0, use_tucker=True),
    "LoRA DoRA out": lambda layer: LORA(layer, 1.0, 4, 2.0, **DORA, wd_on_out=True),
    "LoRA DoRA in": lambda layer: LORA(layer, 1.0, 4, 2.0, **DORA, wd_on_out=False),
    "LoHa": lambda layer: LohaModule("x", layer, 1.0, 4, 3.0),
    "LoHa tucker": lambda layer: LohaModule("x", layer, 1.0, 4, 3.0, use_tucker=True),
    "LoHa DoRA": lambda layer: LohaModule("x", layer, 1.0, 4, 3.0, weight_decompose=True),
    "LoKr full": lambda layer: LokrModule("x", layer, 1.0, 100, 7.0),
    "LoKr w2": lambda layer: LokrModule("x", layer, 1.0, 2, 3.0),
    "LoKr both": lambda layer: LokrModule("x", layer, 1.0, 1, 3.0, decompose_both=True, factor=4),
    "LoKr tucker": lambda layer: LokrModule("x", layer, 1.0, 2, 3.0, use_tucker=True),
    "LoKr DoRA": lambda layer: LokrModule("x", layer, 1.0, 2, 3.0, weight_decompose=True),
    "GLoRA": lambda layer: GLoRAModule("x", layer, 1.0, 4, 3.0),
    "GLoRA tucker": lambda layer: GLoRAModule("x", layer, 1.0, 4, 3.0, use_tucker=True),
    "IA3": lambda layer: IA3Module("x", layer, 1.0),
    "IA3 input": lambda layer: IA3Module("x", layer, 1.0, train_on_input=True),
    "OFT": lambda layer: DiagOFTModule("x", layer, 1.0, 4),
    "OFT rescaled": lambda layer: DiagOFTModule("x", layer, 1.0, 4, constraint=1e-3, rescaled=True),
    "BOFT": lambda layer: ButterflyOFTModule("x", layer, 1.0, 4),
    "BOFT rescaled": lambda layer: ButterflyOFTModule("x", layer, 1.0, 8, constraint=1e-3, rescaled=True),
}  # fmt: skip


def saved(module: nn.Module) -> dict[str, Tensor]:
    """Fill a LyCORIS module with random numbers, and return the tensors that it saves, by role."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    state = module.custom_state_dict() if hasattr(module, "custom_state_dict") else module.state_dict()
    return {_SUFFIXES[key]: value.detach() for key, value in (state or module.state_dict()).items()
            if key in _SUFFIXES}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("shape", LAYERS)
def test_a_change_is_that_of_lycoris(name: str, shape: str) -> None:
    torch.manual_seed(1)
    layer = LAYERS[shape]().requires_grad_(False)
    module = MODULES[name](layer).requires_grad_(False)
    tensors = saved(module)
    kind = kind_of(frozenset(tensors))
    assert kind == name.split()[0].replace("BOFT", "OFT")
    numbers = {role: float(tensors.pop(role)) for role in ("alpha", "on_input") if role in tensors}
    rank = rank_of(kind, {role: tuple(each.shape) for role, each in tensors.items()})
    numbers["scale"] = numbers["alpha"] / rank if rank and "alpha" in numbers else 1.0
    with torch.no_grad():
        expected = trained_weight(module, layer.weight)
    merged = layer.weight + weight_change(kind, layer.weight, tensors, numbers)
    assert (expected - layer.weight).abs().max() > 1e-4
    assert relative(merged, expected) <= 1e-6


def trained_weight(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight that LyCORIS trains; its merge applies LoHa's and LoKr's scale twice (4.1.3)."""
    if not isinstance(module, LohaModule | LokrModule):
        return module.get_merged_weight(shape=weight.shape)[0]
    changed = weight + module.get_weight(weight.shape)
    return module.apply_weight_decompose(changed) if module.wd else changed


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("shape", LAYERS)
def test_a_change_is_that_of_peft(shape: str, rslora: bool, dora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    layer = LAYERS[shape]()
    model = nn.ModuleDict({"x": layer})
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    config = LoraConfig(
        r=4, lora_alpha=3, target_modules=["x"], use_rslora=rslora, use_dora=dora, lora_bias=not dora
    )
    peft = get_peft_model(model, config)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    state = {
        _SUFFIXES[name.partition("x.")[2]]: each.detach().clone()
        for name, each in peft.state_dict().items() if "lora_" in name
    }  # fmt: skip
    peft.merge_adapter()
    scale = 3 / 4**0.5 if rslora else 3 / 4
    merged = weight + weight_change("LoRA", weight, state, {"scale": scale})
    assert relative(merged, peft.base_model.model["x"].base_layer.weight.detach()) <= 1e-6
    change = bias_change(bias, state, {"scale": scale})
    assert (change is None) == dora
    if change is not None:
        assert relative(bias + change, peft.base_model.model["x"].base_layer.bias.detach()) <= 1e-6


@pytest.mark.parametrize("feedforward", [False, True])
def test_peft_ia3(feedforward: bool) -> None:
    from peft import IA3Config, get_peft_model

    torch.manual_seed(1)
    layer = nn.Linear(24, 64)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    config = IA3Config(target_modules=["x"], feedforward_modules=["x"] if feedforward else [])
    peft = get_peft_model(nn.ModuleDict({"x": layer}), config)
    with torch.no_grad():
        (factors,) = (each for name, each in peft.named_parameters() if "ia3_l" in name)
        factors.add_(0.1 * torch.randn_like(factors))
    tensors = {"ia3_l": factors.detach().clone()}
    peft.merge_adapter()
    base = peft.base_model.model["x"].base_layer
    assert relative(weight + weight_change("IA3", weight, tensors, {}), base.weight.detach()) <= 1e-6
    change = bias_change(bias, tensors, {})
    assert relative(bias if change is None else bias + change, base.bias.detach()) <= 1e-6


def test_differences_norms_and_replacements() -> None:
    weight, other = torch.randn(5, 6), torch.randn(5, 6)
    assert torch.equal(weight_change("difference", weight, {"diff": other}, {}), other)
    assert torch.equal(weight_change("norm", weight[0], {"w_norm": other[0]}, {}), other[0])
    torch.testing.assert_close(
        weight + weight_change("replacement", weight, {"set_weight": other}, {}), other
    )
    assert torch.equal(bias_change(weight[0], {"b_norm": other[0]}, {}), other[0])
    assert torch.equal(bias_change(weight[0], {"diff_b": other[0]}, {}), other[0])


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr", "GLoRA"])
def test_shapes_that_do_not_fit_are_refused_before_anything_is_allocated(kind: str) -> None:
    huge = 2**20
    roles = {role: torch.empty(huge, huge, device="meta") for role in KINDS[kind].roles}
    with pytest.raises((ShapeError, RuntimeError)):
        weight_change(kind, torch.empty(8, 8, device="meta"), roles, {"scale": 1.0})


def test_mixtures_have_no_kind() -> None:
    assert kind_of(frozenset({"up", "hada_w1_a"})) is None
    assert kind_of(frozenset({"up", "down", "alpha", "dora", "diff_b"})) == "LoRA"
    assert kind_of(frozenset({"diff_b"})) == "bias"
