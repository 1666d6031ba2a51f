"""Weight-only int8, and networks that take turns in memory."""

import gc
import weakref

import pytest
import torch
from torch import nn

from ssd1b.execution import Execution
from ssd1b.models.attention import GEGLU
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.pipeline import Pipeline
from ssd1b.speed.offloading import LazyNetwork, ModelSlot
from ssd1b.speed.packing import pack
from ssd1b.speed.weight_only import SMALLEST, WeightOnlyInt8, quantize_weights
from tiny import LAYOUTS, inputs


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(128, 256), (2, 3, 128)),
        (nn.Conv2d(64, 64, 3, padding=1, stride=2), (2, 64, 9, 8)),
        (nn.Conv2d(64, 512, 1, bias=False), (1, 64, 4, 4)),
    ],
)
def test_a_weight_only_layer(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    small = WeightOnlyInt8(layer)
    assert small.weight.dtype == torch.int8 and int(small.weight.abs().amax()) == 127
    error = relative_error(small(x).detach(), layer(x).detach())
    assert 1e-4 < error < 0.02
    assert small(x.bfloat16().to(torch.float64).float()).dtype == torch.float32
    zero = nn.Linear(8, 8)
    nn.init.zeros_(zero.weight)
    assert WeightOnlyInt8(zero)(torch.ones(8)).detach().equal(zero.bias), "a row of zeros has a scale"


def test_a_weight_only_unet_predicts_nearly_the_same():
    torch.manual_seed(0)
    model = UNet(LAYOUTS["ssd-1b"]).eval().requires_grad_(False)
    given = inputs(LAYOUTS["ssd-1b"], 16, 16)
    expected = model(*given)
    before = sum(each.nbytes for each in model.state_dict().values())
    quantize_weights(model)
    assert 1e-4 < relative_error(model(*given), expected) < 0.05
    after = sum(each.nbytes for each in model.state_dict().values())
    assert after < 0.4 * before
    left = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(each.weight.numel() < SMALLEST for each in left)


def test_weight_only_layers_are_not_packed():
    network = nn.Sequential(GEGLU(128, 512)).requires_grad_(False)
    quantize_weights(network)
    pack(network)
    assert isinstance(network[0], GEGLU) and isinstance(network[0].proj, WeightOnlyInt8)


def test_loading_one_network_frees_the_other():
    slot, loaded, alive = ModelSlot(), [], {}

    def lazy(name: str) -> LazyNetwork:
        def load() -> nn.Module:
            gc.collect()
            assert not any(reference() for reference in alive.values()), "two networks would be in memory"
            loaded.append(name)
            network = nn.Linear(4, 4)
            alive[name] = weakref.ref(network)
            return network

        return LazyNetwork(nn.Linear, load, slot, layout=name)

    first, second = lazy("first"), lazy("second")
    assert isinstance(first, nn.Linear) and first.layout == "first" and loaded == []
    assert first(torch.ones(4)).shape == (4,) and first.in_features == 4 and loaded == ["first"]
    assert second.out_features == 4 and loaded == ["first", "second"]
    assert first(torch.ones(4)).shape == (4,) and loaded == ["first", "second", "first"]


def test_low_memory_generates_nearly_the_same_image():
    settings = {"seed": 3, "steps": 6}
    exact = Pipeline.load("mini-ssd-1b", device="cpu", dtype="fp32", offline=True)
    low = Pipeline.load(
        "mini-ssd-1b", device="cpu", dtype="fp32", offline=True, execution=Execution(memory="low")
    )
    assert isinstance(low.unet, UNet) and isinstance(low.text.encoder, TextEncoder)
    prompt = "a small red cone on a white background"
    (one,), (other,) = exact.generate(prompt, **settings), low.generate(prompt, **settings)
    first, second = (torch.tensor(bytearray(each.image.tobytes())).float() for each in (one, other))
    assert 0 < (first - second).abs().mean() < 6, "of 255 levels"
    assert other.recipe.computing == Execution(memory="low") and other.recipe.dtype == "float32"
    again = low.generate(prompt, **settings)[0]
    assert again.image.tobytes() == other.image.tobytes()
