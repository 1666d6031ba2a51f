"""The optimisers: one of torch's or bitsandbytes', and Muon if the settings have its rate."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssd1b.errors import InputError, UnavailableError
from ssd1b.training.muon import Muon
from ssd1b.training.processes import shard_like
from ssd1b.training.settings import LoopSettings
from ssd1b.training.trained import trained_parameters

_OUTER_LAYERS = ("embed", "conv_in", "conv_out", "quant_conv")
"""Parts of the names of layers that Muon does not update."""

_TEXT = "text_encoder"
"""Beginning of the names of text encoders' parameters, which may have a rate of their own."""

_DEVICES_8_BIT = ("cuda", "xpu", "cpu")
"""Devices for which bitsandbytes has an 8-bit AdamW."""


class Optimizers:
    """The optimisers of a model's trained parameters, each of which is updated by one of them.

    Muon updates the weights between features: no embeddings, no input and output layers, no biases and norms.

    Args:
        model: only parameters that require gradients are updated.
        settings: kind and rates.

    Raises:
        InputError: there is a rate for text encoders, and none is trained.
    """

    def __init__(self, model: nn.Module, settings: LoopSettings) -> None:
        inner, text, rest = {}, {}, {}
        for name, parameter in trained_parameters(model).items():
            outer = parameter.ndim < 2 or any(part in name for part in _OUTER_LAYERS)
            if settings.text_rate is not None and name.startswith(_TEXT):
                text[name] = parameter
            else:
                (rest if outer or settings.muon_rate is None else inner)[name] = parameter
        assert inner or text or rest, "no parameter of the model requires gradients"
        if settings.text_rate is not None and not text:
            raise InputError("text_rate is for text encoders: this training has none")
        self._optimizers: list[tuple[Optimizer, float, list[str]]] = []
        for group, rate in ((rest, settings.learning_rate), (text, settings.text_rate)):
            if group:
                assert rate is not None
                self._optimizers.append((_build(group.values(), settings, rate), rate, list(group)))
        if inner:
            assert settings.muon_rate is not None
            muon = Muon(inner.values(), lr=settings.muon_rate, weight_decay=settings.muon_decay)
            self._optimizers.append((muon, settings.muon_rate, list(inner)))

    def step(self, share: float) -> None:
        """Update the parameters, at a share of the rates."""
        for optimizer, rate, _ in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Return the optimisers' state, named ``PARAMETER.KEY``; a number is a tensor without axes."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for optimizer, _, names in self._optimizers
            for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True)
            if parameter in optimizer.state
            for key, value in optimizer.state[parameter].items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        remembered: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for full_name, value in state.items():
            name, _, key = full_name.rpartition(".")
            remembered[name][key] = value
        for optimizer, _, names in self._optimizers:
            parameters = optimizer.param_groups[0]["params"]
            states = {
                index: {key: _as_stored(value, parameter) for key, value in remembered[name].items()}
                for index, (name, parameter) in enumerate(zip(names, parameters, strict=True))
                if name in remembered
            }
            # The library knows on which device each optimiser keeps its state.
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def _as_stored(value: Tensor, parameter: nn.Parameter) -> Tensor | int:
    """Convert an optimiser's state from a file to the form that the optimiser uses."""
    if value.ndim == 0:
        # bitsandbytes counts its steps in Python, torch in a tensor of floats.
        return value if value.is_floating_point() else int(value)
    if value.shape == parameter.shape and value.is_floating_point():
        # Fused AdamW reads parameter and state in the order of their memory, whatever their strides.
        value = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype).copy_(value)
    return shard_like(value, parameter)


def _build(parameters: Iterable[nn.Parameter], settings: LoopSettings, rate: float) -> Optimizer:
    decay, each = settings.weight_decay, list(parameters)
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
        raise UnavailableError("optimizer adamw-8bit needs bitsandbytes: pip install bitsandbytes") from error
    for parameter in each:
        # The library does this in its first step; a resumed run needs it before.
        parameter.data = parameter.data.contiguous()
    library: Any = bitsandbytes.optim
    return library.AdamW8bit(each, lr=rate, betas=settings.betas, weight_decay=decay)
