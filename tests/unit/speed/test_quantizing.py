"""Int8 and fp8 by torchao and oneDNN: which layers are quantized, and how accurate they are."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from ssd1b.errors import InputError
from ssd1b.execution import Execution
from ssd1b.layouts import SSD_1B, model_layout
from ssd1b.models.attention import GEGLU
from ssd1b.models.unet import UNet
from ssd1b.speed import int8_cpu, torchao_quant
from ssd1b.speed.backends import check_execution, prepare, resolve_auto
from ssd1b.speed.int8_cpu import Int8Conv2d, Int8GEGLU, Int8Linear, int8_is_fast
from ssd1b.speed.torchao_quant import QUANTIZATIONS, Quantization, check_quantization
from tiny import LAYOUTS, inputs

CPU = torch.device("cpu")


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_unet_in_int8_predicts_nearly_the_same(monkeypatch):
    schemes = {name: Quantization(each.config, smallest=2**10) for name, each in QUANTIZATIONS.items()}
    monkeypatch.setattr(torchao_quant, "QUANTIZATIONS", schemes)
    torch.manual_seed(0)
    model = UNet(LAYOUTS["ssd-1b"]).eval().requires_grad_(False)
    given = inputs(LAYOUTS["ssd-1b"], 16, 16)
    with torch.inference_mode():
        expected = model(*given)
        torchao_quant.quantize(model, "int8")
        error = (model(*given) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05
    kinds = {name: type(each.weight) for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    quantized = {name for name, kind in kinds.items() if kind is not nn.Parameter}
    assert any(".ff.net.2" in name for name in quantized)
    assert not any("attn2.to_k" in name or "time_emb" in name for name in quantized)


def test_unsupported_quantizations_are_refused(monkeypatch):
    monkeypatch.setattr("ssd1b.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match="quantize int8 needs torchao, which is not installed: pip install"):
        check_quantization("int8", torch.device("cuda"), torch.float16)
    monkeypatch.setattr("ssd1b.extras.find_spec", lambda name: object())
    with pytest.raises(InputError, match="fp8 needs"):
        check_quantization("fp8", CPU, torch.float32)
    monkeypatch.setattr(torchao_quant, "int8_is_fast", lambda: False)
    with pytest.raises(InputError, match=r"int8 instructions.*use int8-weights"):
        check_quantization("int8", CPU, torch.float32)
    monkeypatch.setattr(torchao_quant, "int8_is_fast", lambda: True)
    check_quantization("int8", CPU, torch.float32)
    with pytest.raises(InputError, match="fp32 or bf16 on a CPU, not in fp16"):
        check_quantization("int8", CPU, torch.float16)
    with pytest.raises(InputError, match="omit compile"):
        check_execution(Execution(compiled=True, quantized="int8"), CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("layout", "fast", "device", "dtype", "options", "expected"),
    [
        (SSD_1B, True, "cpu", torch.bfloat16, {}, "int8"),
        (SSD_1B, True, "cpu", torch.float32, {}, "int8"),
        (SSD_1B, False, "cpu", torch.bfloat16, {}, None),
        (SSD_1B, True, "cuda", torch.bfloat16, {}, None),
        (SSD_1B, True, "cpu", torch.float16, {}, None),
        (SSD_1B, True, "cpu", torch.bfloat16, {"compiled": True}, None),
        (model_layout("mini-ssd-1b").unet, True, "cpu", torch.float32, {}, None),
    ],
)
def test_auto_is_int8_where_it_is_faster(monkeypatch, layout, fast, device, dtype, options, expected):
    monkeypatch.setattr("ssd1b.speed.backends.int8_is_fast", lambda: fast)
    execution = Execution(quantized="auto", **options)
    check_execution(execution, torch.device(device), dtype)
    resolved = resolve_auto(execution, layout, torch.device(device), dtype)
    assert resolved == Execution(quantized=expected, **options)


def test_explicit_options_stay():
    chosen = Execution(memory="low", quantized="int8-weights")
    assert resolve_auto(chosen, SSD_1B, CPU, torch.float32) == chosen


needs_kernels = pytest.mark.skipif(not int8_is_fast(), reason="the processor has no int8 instructions")


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "int8_layer", "shape"),
    [
        (nn.Linear(96, 64), Int8Linear, (2, 10, 96)),
        (nn.Linear(96, 64, bias=False), Int8Linear, (2, 10, 96)),
        (GEGLU(64, 128), Int8GEGLU, (2, 10, 64)),
        (nn.Conv2d(48, 64, 3, padding=1), Int8Conv2d, (2, 48, 9, 7)),
        (nn.Conv2d(48, 64, 3, stride=2, padding=1), Int8Conv2d, (2, 48, 9, 7)),
        (nn.Conv2d(48, 64, 1), Int8Conv2d, (2, 48, 9, 7)),
    ],
)
@pytest.mark.parametrize("ranges", ["both sides", "positive", "negative", "far from zero", "zeros"])
def test_an_int8_layer_computes_nearly_the_same(layer, int8_layer, shape, dtype, ranges):
    torch.manual_seed(0)
    x = torch.randn(shape)
    x = {"both sides": x, "positive": x.abs(), "negative": -x.abs(), "far from zero": x + 20, "zeros": 0 * x}[
        ranges
    ].to(dtype)
    exact = layer.to(torch.float32).requires_grad_(False)
    with torch.inference_mode():
        quantized = int8_layer(exact).eval()
        quantized(x[:1])  # a convolution packs its weights for one size, then for another
        expected, output = exact(x.float()), quantized(x)
    assert output.dtype == dtype
    # Half a quantization step of the input, which is a 253rd of its range.
    bound = 0.02 * expected.abs().mean() + 0.01 * x.abs().max()
    assert (output.float() - expected).abs().mean() <= bound


@needs_kernels
def test_int8_leaves_ends_and_layers_that_run_once():
    torch.manual_seed(0)
    model = UNet(LAYOUTS["ssd-1b"]).eval().requires_grad_(False)
    given = inputs(LAYOUTS["ssd-1b"], 16, 16)
    with torch.inference_mode():
        expected = model(*given)
        prepare(model, quantized="int8")
        error = (model(*given) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.1
    kinds = {name: type(each) for name, each in model.named_modules()}
    quantized = {name for name, kind in kinds.items() if kind in (Int8Linear, Int8GEGLU, Int8Conv2d)}
    assert any(name.endswith("resnets.0.conv1") for name in quantized)
    assert any(name.endswith("attn1.to_qkv") for name in quantized)
    assert any(".ff." in name for name in quantized)
    assert not any(name.endswith(("conv_in", "conv_out", "to_k", "time_emb_proj")) for name in quantized)


@needs_kernels
@pytest.mark.parametrize("layer", [nn.Linear(7, 64), nn.Conv2d(48, 64, 3, padding=1)])
def test_large_tensors_are_quantized_in_chunks(layer, monkeypatch):
    x = torch.randn(2, 48, 9, 7)
    quantized = Int8Linear(layer) if isinstance(layer, nn.Linear) else Int8Conv2d(layer)
    with torch.inference_mode():
        expected = quantized(x)
        monkeypatch.setattr(int8_cpu, "_CHUNK", 1000)  # does not divide the number of elements
        assert torch.equal(quantized(x), expected)


@needs_kernels
def test_nan_stays_nan():
    layer = Int8Linear(nn.Linear(96, 64).requires_grad_(False))
    assert layer(torch.full((2, 96), float("nan"))).isnan().all()
