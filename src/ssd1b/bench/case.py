"""What is timed: one network of a model at its full size, or all of them, with random weights, and its input.

Speed does not depend on what weights say, as long as numbers stay in their usual range.
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
from ssd1b.models.text import CONTEXT, TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import example_inputs
from ssd1b.models.vae import VAE

CPU = torch.device("cpu")
PROMPT = "a lighthouse on a cliff above the sea at dusk, its beam in the mist, oil on canvas"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is computed, and by which weights.

    Attributes:
        part: one of ``bench.PARTS``.
        layout: of the model.
        network: with random weights; of a picture a dictionary of the four.
        inputs: for its forward pass, in float32 on the CPU: ``UNetInputs``, the VAE's latents, the encoder's
            token ids; of a picture none.
        batch: pictures, or texts, at a time. For each the UNet has a pair of inputs, one without a text, as
            guidance has without a negative prompt; those without come first.
        settings: of a picture.
        macs: multiply-accumulate operations, each counted whole; a picture's texts are not counted.
        copies: the network by number format and place, as engines come to need them.
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
    """Make networks and their input.

    Args:
        part: one of ``bench.PARTS``.
        layout: of the model.
        latent: side of the latents.
        batch: pictures, or texts, at a time.
        steps: of a picture, each a pair for guidance without a negative prompt.
        seed: of weights and inputs.
        dtype: number format of the weights.
        device: where they are made; other devices draw other numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    unet = layout.unet
    side = latent * layout.vae.factor
    settings: dict[str, Any] = {}
    inputs: tuple[Tensor, ...] = ()
    pass_macs = unet_macs(unet, latent, latent, CONTEXT)
    if part == "unet":
        random = partial(torch.randn, generator=generator)
        inputs = example_inputs(unet, 2 * batch, latent, latent, tokens=CONTEXT, fill=random)
        inputs.prompt_embeds[:batch], inputs.pooled_prompt_embeds[:batch] = 0.0, 0.0
        macs = 2 * batch * pass_macs
    elif part == "vae":
        inputs = (torch.randn(batch, layout.vae.latent_channels, latent, latent, generator=generator),)
        macs = _decoder_macs(layout, latent) * batch
    elif part == "text":
        # An end token stands somewhere, as in any text.
        ids = torch.randint(0, layout.text_encoder_2.eos_token_id, (batch, CONTEXT), generator=generator)
        ids[:, -1] = layout.text_encoder_2.eos_token_id
        inputs = (ids,)
        macs = _text_macs(layout) * batch
    else:
        settings = {
            "prompt": PROMPT, "seed": seed, "steps": steps, "sampler": "euler", "guidance_scale": 9.0,
            "width": side, "height": side,
        }  # fmt: skip
        macs = batch * (2 * steps * pass_macs + _decoder_macs(layout, latent))
    network = random_network(_MAKERS[part](layout), seed, dtype, device)
    return Case(
        part=part,
        layout=layout,
        network=network,
        inputs=inputs,
        batch=batch,
        settings=settings,
        macs=macs,
        copies={(dtype, device): network},
    )


_MAKERS: dict[str, Callable[[ModelLayout], Callable[[], nn.Module]]] = {
    "unet": lambda layout: lambda: UNet(layout.unet),
    "vae": lambda layout: lambda: VAE(layout.vae),
    "text": lambda layout: lambda: TextEncoder(layout.text_encoder_2),
    "picture": lambda layout: lambda: nn.ModuleDict({
        "unet": UNet(layout.unet),
        "vae": VAE(layout.vae),
        "text_encoder": TextEncoder(layout.text_encoder),
        "text_encoder_2": TextEncoder(layout.text_encoder_2),
    }),
}  # fmt: skip


def _decoder_macs(layout: ModelLayout, latent: int) -> int:
    with torch.device("meta"):
        vae, x = VAE(layout.vae), torch.empty(1, layout.vae.latent_channels, latent, latent)
    return _macs(lambda: vae.decoder(vae.post_quant_conv(x)))


def _text_macs(layout: ModelLayout) -> int:
    with torch.device("meta"):
        encoder, ids = TextEncoder(layout.text_encoder_2), torch.zeros(1, CONTEXT, dtype=torch.long)
    return _macs(lambda: encoder(ids))


def _macs(run: Callable[[], object]) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def parameters(part: str, layout: ModelLayout) -> int:
    """How many numbers a part's weights are."""
    with torch.device("meta"):
        return sum(each.numel() for each in _MAKERS[part](layout)().parameters())


def random_network(
    make: Callable[[], nn.Module], seed: int, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Build a network with random weights through which numbers keep their size."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        network = make().to(dtype)
    network.to_empty(device=device).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return network
