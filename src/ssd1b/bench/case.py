"""Benchmark cases: one network of a model at full size, or all of them, with random weights and inputs.

Speed does not depend on the weights' values, as long as activations stay in their usual range.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssd1b.evaluate.cost import unet_macs
from ssd1b.layouts import ModelLayout
from ssd1b.model import NETWORKS, empty_network
from ssd1b.models.text import CONTEXT
from ssd1b.models.unet_inputs import example_inputs

CPU = torch.device("cpu")
PROMPT = "a lighthouse on a cliff above the sea at dusk, its beam in the mist, oil on canvas"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A computation to benchmark.

    Attributes:
        part: one of ``bench.PARTS``.
        layout: layout of the model.
        network: network with random weights; for part ``picture`` a ``ModuleDict`` of all four.
        inputs: arguments of the forward pass, in float32 on the CPU: ``UNetInputs``, the VAE's latents, or
            the encoder's token ids; empty for part ``picture``.
        batch: number of images or texts. For each, the UNet has two inputs, as with guidance: first those
            without a prompt, then those with one.
        settings: settings of the image; empty for other parts.
        macs: multiply-accumulate operations, without the text encoders for part ``picture``.
        copies: copies of the network by number format and device, made when an engine needs them.
    """

    part: str
    layout: ModelLayout
    network: nn.Module
    inputs: tuple[Tensor, ...]
    batch: int
    settings: Mapping[str, Any]
    macs: int
    copies: dict[tuple[torch.dtype, torch.device], nn.Module]


def make_case(
    part: str, layout: ModelLayout, *, latent: int, batch: int, steps: int = 20, seed: int = 0,
    dtype: torch.dtype = torch.float32, device: torch.device = CPU,
) -> Case:  # fmt: skip
    """Make networks with random weights and their inputs.

    Args:
        part: one of ``bench.PARTS``.
        layout: layout of the model.
        latent: side of the latents.
        batch: number of images or texts.
        steps: denoising steps of an image, with guidance.
        seed: seed of weights and inputs.
        dtype: number format of the weights.
        device: device on which they are made; other devices give other random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    random = partial(torch.randn, generator=generator)
    settings: dict[str, Any] = {}
    inputs: tuple[Tensor, ...] = ()
    pass_macs = unet_macs(layout.unet, latent, latent, CONTEXT)
    if part == "unet":
        inputs = example_inputs(layout.unet, 2 * batch, latent, latent, tokens=CONTEXT, fill=random)
        inputs.prompt_embeds[:batch], inputs.pooled_prompt_embeds[:batch] = 0.0, 0.0
        macs = 2 * batch * pass_macs
    elif part == "vae":
        inputs = (random(batch, layout.vae.latent_channels, latent, latent),)
        macs = _decoder_macs(layout, latent) * batch
    elif part == "text":
        end = layout.text_encoder_2.eos_token_id
        ids = torch.randint(0, end, (batch, CONTEXT), generator=generator)
        ids[:, -1] = end
        inputs = (ids,)
        macs = _text_macs(layout) * batch
    else:
        side = latent * layout.vae.factor
        settings = {
            "prompt": PROMPT, "seed": seed, "steps": steps, "sampler": "euler", "guidance_scale": 9.0,
            "width": side, "height": side,
        }  # fmt: skip
        macs = batch * (2 * steps * pass_macs + _decoder_macs(layout, latent))
    network = _random_network(part, layout, seed, dtype, device)
    return Case(
        part=part, layout=layout, network=network, inputs=inputs, batch=batch, settings=settings, macs=macs,
        copies={(dtype, device): network},
    )  # fmt: skip


def _empty_part(part: str, layout: ModelLayout) -> nn.Module:
    """Build the network of a part on the meta device."""
    if part == "picture":
        return nn.ModuleDict({name: empty_network(name, getattr(layout, name)) for name in NETWORKS})
    name = "text_encoder_2" if part == "text" else part
    return empty_network(name, getattr(layout, name))


def _decoder_macs(layout: ModelLayout, latent: int) -> int:
    vae: Any = _empty_part("vae", layout)
    x = torch.empty(1, layout.vae.latent_channels, latent, latent, device="meta")
    return _macs(lambda: vae.decoder(vae.post_quant_conv(x)))


def _text_macs(layout: ModelLayout) -> int:
    ids = torch.zeros(1, CONTEXT, dtype=torch.long, device="meta")
    return _macs(lambda: _empty_part("text", layout)(ids))


def _macs(run: Callable[[], object]) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def parameters(part: str, layout: ModelLayout) -> int:
    """Count the parameters of a part."""
    return sum(each.numel() for each in _empty_part(part, layout).parameters())


def _random_network(
    part: str, layout: ModelLayout, seed: int, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Build a network with random weights that roughly preserve the scale of activations."""
    generator = torch.Generator(device).manual_seed(seed)
    network = _empty_part(part, layout).to(dtype)
    network.to_empty(device=device).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return network
