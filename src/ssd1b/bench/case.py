"""What is timed: one network of a model at its full size, with random weights, and what it is given.

Speed does not depend on what weights say, as long as numbers stay in their usual range.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssd1b.evaluate.cost import unet_macs
from ssd1b.layouts import ModelLayout
from ssd1b.models.text import CONTEXT, TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE

TIMESTEP = 500.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and its inputs, in float32.

    Attributes:
        part: one of ``bench.PARTS``.
        layout: of the model.
        network: with random weights.
        inputs: for its forward pass: the UNet's five, the VAE's latents, the encoder's token ids.
        batch: how many inputs; of the UNet's the first half has no text, as a pair for guidance has without a
            negative prompt.
        macs: multiply-accumulate operations, each counted whole; None where nobody counted.
        copies: of the network in other number formats or places, as engines come to need them.
    """

    part: str
    layout: ModelLayout
    network: nn.Module
    inputs: tuple[Tensor, ...]
    batch: int
    macs: int | None
    copies: dict[tuple[torch.dtype, torch.device], nn.Module] = field(default_factory=dict)


def make_case(part: str, layout: ModelLayout, *, latent: int, batch: int, seed: int = 0) -> Case:
    """Make a network and its inputs.

    Args:
        part: one of ``bench.PARTS``.
        layout: of the model.
        latent: side of the latents.
        batch: how many at a time; decoded is one picture.
        seed: of weights and inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    unet = layout.unet
    latents = torch.randn(batch, unet.in_channels, latent, latent, generator=generator)
    macs = None
    if part == "unet":
        side = float(latent * layout.vae.factor)
        embeds = torch.randn(batch, CONTEXT, unet.cross_attention_dim, generator=generator)
        pooled = torch.randn(batch, unet.pooled_dim, generator=generator)
        embeds[: batch // 2], pooled[: batch // 2] = 0.0, 0.0
        sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]]).expand(batch, -1)
        inputs = (latents, torch.full((batch,), TIMESTEP), embeds, pooled, sizes)
        macs = batch * unet_macs(unet, latent, latent, CONTEXT)
    elif part == "vae":
        inputs = (latents[:1, : layout.vae.latent_channels],)
    else:
        # An end token stands somewhere, as in any text.
        ids = torch.randint(0, layout.text_encoder_2.eos_token_id, (batch, CONTEXT), generator=generator)
        ids[:, -1] = layout.text_encoder_2.eos_token_id
        inputs = (ids,)
    return Case(
        part=part, layout=layout, network=random_network(_MAKERS[part](layout), generator), inputs=inputs,
        batch=len(inputs[0]), macs=macs,
    )  # fmt: skip


_MAKERS: dict[str, Callable[[ModelLayout], Callable[[], nn.Module]]] = {
    "unet": lambda layout: lambda: UNet(layout.unet),
    "vae": lambda layout: lambda: VAE(layout.vae),
    "text": lambda layout: lambda: TextEncoder(layout.text_encoder_2),
}


def parameters(part: str, layout: ModelLayout) -> int:
    """How many numbers a part's weights are."""
    with torch.device("meta"):
        return sum(each.numel() for each in _MAKERS[part](layout)().parameters())


def random_network(make: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Build a network on the CPU with random weights through which numbers keep their size."""
    with torch.device("meta"):
        network = make()
    buffers = {name: buffer for name, buffer in network.named_buffers() if buffer.is_meta}
    network.to_empty(device="cpu").requires_grad_(False).eval()
    for name, buffer in buffers.items():
        # CLIP's position numbers are the only buffers there are.
        network.get_buffer(name).copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return network
