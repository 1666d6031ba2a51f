"""Who computes: our own engine, the same network without it, and peers where they are installed.

Each gets the same weights and inputs. Peers are imported when they are asked for, and nowhere else in the
package.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssd1b.bench.case import Case
from ssd1b.errors import InputError, unknown
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.runtime import DTYPES, choose_dtype
from ssd1b.speed.packing import pack
from ssd1b.weights.configs import unet_config, vae_config

Work = Callable[[], Tensor]
"""Computes once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What computes a case.

    Attributes:
        needs: libraries beyond our own.
        prepare: ``prepare(case, dtype, device)``: everything that happens once.
        copies: of the weights that it makes in its number format.
    """

    prepare: Callable[[Case, torch.dtype, torch.device], Work]
    needs: tuple[str, ...] = ()
    copies: int = 0


def _ours(case: Case, dtype: torch.dtype, device: torch.device, *, fast: bool = True) -> Work:
    network = _converted(case, dtype, device)
    inputs = _inputs(case, dtype, device)
    if fast:
        network = _shell(network)
        pack(network)
    if isinstance(network, UNet):
        latents, timesteps, embeds, pooled, sizes = inputs
        # Once a picture, and so no part of a step.
        context = network.read(embeds, without_text=case.batch // 2) if fast else embeds
        return lambda: network(latents, timesteps, context, pooled, sizes)
    if isinstance(network, VAE):
        return lambda: network.decode(*inputs)
    return lambda: network(*inputs)[0]


def _diffusers(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
    return _called(case, dtype, device, _diffusers_network(case, dtype, device))


def _compiled(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
    from torch._inductor import config

    network = _diffusers_network(case, dtype, device)
    mode = "max-autotune" if device.type == "cuda" else None
    work = _called(case, dtype, device, cast(nn.Module, torch.compile(network, mode=mode)))
    with config.patch(freezing=True):  # folds weights into what is compiled, where nothing learns
        work()
    return work


def _called(case: Case, dtype: torch.dtype, device: torch.device, network: nn.Module) -> Work:
    inputs = _inputs(case, dtype, device)
    if case.part == "vae":
        scaled = inputs[0] / case.layout.vae.scaling_factor
        decoder = cast(Any, network)
        return lambda: decoder(scaled)
    if case.part == "text":
        return lambda: network(inputs[0], output_hidden_states=True).hidden_states[-2]
    latents, timesteps, embeds, pooled, sizes = inputs
    added = {"text_embeds": pooled, "time_ids": sizes}
    return lambda: network(latents, timesteps[0], embeds, added_cond_kwargs=added, return_dict=False)[0]


def _diffusers_network(case: Case, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The peer's own module, sharing our weights."""
    if case.part == "text":
        # diffusers leaves texts to transformers, as we do.
        return cast(Any, _converted(case, dtype, device)).text_model
    diffusers: Any = import_module("diffusers")
    side = case.layout.size
    config, kind = (
        (unet_config(case.layout.unet, side // case.layout.vae.factor), diffusers.UNet2DConditionModel)
        if case.part == "unet"
        else (vae_config(case.layout.vae, side), diffusers.AutoencoderKL)
    )
    with torch.device("meta"):
        network = kind.from_config(config)
    network.load_state_dict(_converted(case, dtype, device).state_dict(), assign=True)
    network.requires_grad_(False).eval()
    return _Decoder(network) if case.part == "vae" else network


class _Decoder(nn.Module):
    """An autoencoder's second half, as a picture needs it; diffusers' and ours have the same parts."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = cast(Any, vae).post_quant_conv, cast(Any, vae).decoder

    def forward(self, scaled: Tensor) -> Tensor:
        """Decode latents that were divided by the scaling factor."""
        return self.decoder(self.post_quant_conv(scaled))


def _openvino(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
    openvino: Any = import_module("openvino")
    network = _Decoder(case.network) if case.part == "vae" else case.network
    inputs = _inputs(case, torch.float32, torch.device("cpu"))
    if case.part == "vae":
        inputs = (inputs[0] / case.layout.vae.scaling_factor,)
    model = openvino.convert_model(network, example_input=inputs)
    hint = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    given = [each.numpy() for each in inputs]
    return lambda: torch.from_numpy(compiled(given)[0])


ENGINES: Mapping[str, Engine] = MappingProxyType({
    "ssd1b": Engine(prepare=_ours, copies=1),
    "ssd1b-plain": Engine(prepare=partial(_ours, fast=False)),
    "diffusers": Engine(prepare=_diffusers, needs=("diffusers",)),
    "diffusers-compiled": Engine(prepare=_compiled, needs=("diffusers",), copies=1),
    "openvino": Engine(prepare=_openvino, needs=("openvino",), copies=2),
})  # fmt: skip
"""This package as it draws, and its networks as they are written; diffusers as it is loaded, and compiled
with its weights frozen; our network converted by OpenVINO."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine in a number format."""

    name: str
    dtype: torch.dtype

    def __str__(self) -> str:
        formats = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return f"{self.name}:{formats[self.dtype]}"


def read_choice(text: str, dtype: str | None, device: torch.device) -> Choice:
    """Read "diffusers" or "diffusers:bf16".

    Args:
        text: an engine, and perhaps a number format.
        dtype: the format where ``text`` has none; None is what the hardware is fast at.
        device: where it is to run.

    Raises:
        InputError: no such engine or format, or a library is missing.
    """
    name, _, own = text.partition(":")
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if missing := [library for library in ENGINES[name].needs if find_spec(library) is None]:
        raise InputError(
            f"engine {name} needs {missing[0]}, which is not installed: pip install {missing[0]}"
        )
    if own and own not in DTYPES:
        raise unknown("dtype", own, DTYPES)
    return Choice(name, choose_dtype(own or dtype, device))


def needed_bytes(parameters: int, choices: Sequence[Choice]) -> int:
    """What the weights of all engines take together, ours in float32 among them."""
    formats = {choice.dtype for choice in choices} - {torch.float32}
    copies = [choice.dtype.itemsize * ENGINES[choice.name].copies for choice in choices]
    return parameters * (torch.float32.itemsize + sum(each.itemsize for each in formats) + sum(copies))


def _converted(case: Case, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The case's network, or a copy in another format or place, which all engines of that share."""
    where = (dtype, device)
    if where == (torch.float32, torch.device("cpu")):
        return case.network
    if where not in case.copies:
        case.copies[where] = deepcopy(case.network).to(device, dtype)
    return case.copies[where]


def _shell(network: nn.Module) -> nn.Module:
    """A copy that shares its weights, whose layers may be changed."""
    weights = [*network.parameters(), *network.buffers()]
    return deepcopy(network, {id(weight): weight for weight in weights})


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """In an engine's number format, but for the numbers that are embedded in float32: times and sizes."""
    exact = {1, 4} if case.part == "unet" else set()
    return tuple(
        each.to(device, dtype if each.is_floating_point() and place not in exact else each.dtype)
        for place, each in enumerate(case.inputs)
    )
