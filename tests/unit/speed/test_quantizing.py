"""torchao's eight bits: which matrices, and how near what they give is."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from ssd1b.errors import InputError
from ssd1b.models.unet import UNet
from ssd1b.speed import quantizing
from ssd1b.speed.preparing import prepare
from ssd1b.speed.quantizing import QUANTIZATIONS, Quantization, check_quantization
from tiny import LAYOUTS, inputs

CPU = torch.device("cpu")


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_unet_in_int8_predicts_nearly_the_same(monkeypatch):
    small = {name: Quantization(way.config, smallest=2**10) for name, way in QUANTIZATIONS.items()}
    monkeypatch.setattr(quantizing, "QUANTIZATIONS", small)
    torch.manual_seed(0)
    model = UNet(LAYOUTS["ssd-1b"]).eval().requires_grad_(False)
    given = inputs(LAYOUTS["ssd-1b"], 16, 16)
    with torch.inference_mode():
        expected = model(*given)
        prepare(model, quantized="int8")
        error = (model(*given) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05
    kinds = {name: type(each.weight) for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    rounded = {name for name, kind in kinds.items() if kind is not nn.Parameter}
    assert any(".ff.net.2" in name for name in rounded)
    assert not any("attn2.to_k" in name or "time_emb" in name for name in rounded)


def test_what_cannot_be_quantized(monkeypatch):
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="quantize int8 needs torchao, which is not installed: pip install"):
        check_quantization("int8", CPU)
    monkeypatch.setattr(quantizing, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="fp8 needs"):
        check_quantization("fp8", CPU)
    check_quantization("int8", CPU)
