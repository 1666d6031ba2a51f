"""What moves the weights: one of the libraries' optimisers, and Muon beside it where wanted."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssd1b.errors import InputError
from ssd1b.training.muon import Muon
from ssd1b.training.processes import shared_out
from ssd1b.training.settings import LoopSettings

_OUTER_LAYERS = ("embed", "conv_in", "conv_out", "quant_conv")
"""Parts of the names of layers that Muon leaves alone."""

_DEVICES_8_BIT = ("cuda", "xpu", "cpu")
"""Where bitsandbytes has an AdamW of 8 bits."""


class Optimizers:
    """All of a model's parameters, each moved by one optimiser.

    Muon is for what turns features into features: not for embeddings, nor for the layers in which pictures
    enter and leave, nor for biases and norms.
    """

    def __init__(self, model: nn.Module, settings: LoopSettings) -> None:
        inner, rest = {}, {}
        for name, parameter in model.named_parameters():
            outer = parameter.ndim < 2 or any(part in name for part in _OUTER_LAYERS)
            (rest if outer or settings.muon_rate is None else inner)[name] = parameter
        usual = _build(rest.values(), settings)
        self._each: list[tuple[Optimizer, float, list[str]]] = [(usual, settings.learning_rate, list(rest))]
        if inner:
            assert settings.muon_rate is not None
            muon = Muon(inner.values(), lr=settings.muon_rate, weight_decay=settings.muon_decay)
            self._each.append((muon, settings.muon_rate, list(inner)))

    def step(self, share: float) -> None:
        """Move the weights, at a share of the rates."""
        for optimizer, rate, _ in self._each:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What is remembered of each parameter, by its name; a number is a tensor without axes."""
        return {
            name: {key: torch.as_tensor(value) for key, value in optimizer.state[parameter].items()}
            for optimizer, _, names in self._each
            for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True)
            if parameter in optimizer.state
        }

    def load(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Remember what ``state`` told."""
        for optimizer, _, names in self._each:
            parameters = optimizer.param_groups[0]["params"]
            state = {
                index: {key: _as_kept(value, parameter) for key, value in states[name].items()}
                for index, (name, parameter) in enumerate(zip(names, parameters, strict=True))
                if name in states
            }
            # The library knows on which device each optimiser wants what.
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _as_kept(value: Tensor, parameter: nn.Parameter) -> Tensor | int:
    """Give a state from a file the form that its optimiser gave it."""
    if value.ndim == 0:
        # bitsandbytes counts its steps in Python, torch in a tensor of floats.
        return value if value.is_floating_point() else int(value)
    if value.shape == parameter.shape and value.is_floating_point():
        # Fused AdamW goes through parameter and state in the order of their memory, whatever their strides.
        value = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype).copy_(value)
    return shared_out(value, parameter)


def _build(parameters: Iterable[nn.Parameter], settings: LoopSettings) -> Optimizer:
    rate, decay, each = settings.learning_rate, settings.weight_decay, list(parameters)
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(each, lr=rate, weight_decay=decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(each, lr=rate, betas=settings.betas, weight_decay=decay, fused=True)
    device = each[0].device.type
    if device not in _DEVICES_8_BIT:
        raise InputError(
            f"optimizer adamw-8bit runs on {', '.join(_DEVICES_8_BIT)}, not on {device}: use adamw"
        )
    try:
        import bitsandbytes
    except ImportError as error:
        raise InputError("optimizer adamw-8bit needs bitsandbytes: pip install bitsandbytes") from error
    for parameter in each:
        # So does the library in its first step; a resumed run must compute so before it, too.
        parameter.data = parameter.data.contiguous()
    library: Any = bitsandbytes.optim
    return library.AdamW8bit(each, lr=rate, betas=settings.betas, weight_decay=decay)
