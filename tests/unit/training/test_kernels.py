"""What is chosen for training on a CPU."""

import pytest
import torch

from ssd1b.finetune.layers import adapt
from ssd1b.finetune.settings import make_settings
from ssd1b.layouts import MINI_SDXL
from ssd1b.models.unet import UNet
from ssd1b.training import kernels
from ssd1b.training.settings import LoopSettings
from tiny import DRAWABLE


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_blocks_are_compiled_once_a_width_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(MINI_SDXL.unet)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert not kernels.use_fast_cpu_kernels(unet, torch.float32)
    assert all(module._compiled_call_impl is None for module in unet.modules())
    monkeypatch.setattr(kernels.shutil, "which", lambda name: "/usr/bin/g++")
    assert kernels.use_fast_cpu_kernels(unet, torch.float32)
    compiled = [module for module in unet.modules() if module._compiled_call_impl is not None]
    assert len(compiled) == unet.layout.transformer_blocks


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("steps", [kernels.COMPILED_STEPS - 1, kernels.COMPILED_STEPS])
def test_a_distillation_compiles_if_it_is_long_and_says_so(
    monkeypatch: pytest.MonkeyPatch, steps: int, checkpointing: bool
) -> None:
    said: list[str] = []
    settings = LoopSettings(
        steps=steps, batch_size=1, learning_rate=1e-4, decay_steps=1, gradient_checkpointing=checkpointing
    )
    monkeypatch.setattr(kernels.shutil, "which", lambda name: "/usr/bin/g++")
    networks = teacher, student = UNet(DRAWABLE.unet), UNet(DRAWABLE.unet)
    kernels.speed_up(teacher, [student], torch.float32, settings, said.append)
    compiled = [any(module._compiled_call_impl for module in each.modules()) for each in networks]
    long = steps == kernels.COMPILED_STEPS
    assert compiled == [long, long and not checkpointing] and len(said) == long


def test_blocks_with_parametrized_layers_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these layers is of a class of its own, for which its block would be compiled again."""
    unet = UNet(DRAWABLE.unet)
    adapt(unet, make_settings(None, {"kind": "dora", "data.path": "x"}, size=64))
    monkeypatch.setattr(kernels.shutil, "which", lambda name: "/usr/bin/g++")
    assert not kernels.use_fast_cpu_kernels(unet, torch.float32)
    assert all(module._compiled_call_impl is None for module in unet.modules())
