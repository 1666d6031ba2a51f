"""ControlNet: a copy of a UNet's encoder that reads a picture, and whose features are added to the UNet's.

Zhang et al. 2023 (2302.05543). For SDXL the copy has the UNet's widths and resnets, and any number of
transformer blocks: the published "full" has SDXL's, "mid" and "small" have fewer or none.
"""

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.layouts import ControlNetLayout
from ssd1b.models.unet import Additions, Block, Encoder, PromptKV, UNet, contexts_of, skip_channels
from ssd1b.tensors import Latents, Levels, PooledEmbeds, PromptEmbeds, TimeIds, Timesteps


class Hint(nn.Module):
    """Convolutions that bring a picture to the size and channels of the first feature map."""

    def __init__(self, layout: ControlNetLayout) -> None:
        super().__init__()
        widths = layout.hint
        self.conv_in = nn.Conv2d(layout.picture_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, after, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], layout.encoder.levels[0].channels, 3, padding=1)

    def forward(self, picture: Levels) -> Tensor:
        """``[B, 3, H, W] -> [B, C, H/8, W/8]``."""
        x = F.silu(self.conv_in(picture))
        for convolution in self.blocks:
            x = F.silu(convolution(x))
        return self.conv_out(x)


class ControlNet(Encoder):
    """Network that computes what a picture adds to the features of a UNet.

    State-dict keys and shapes are those of diffusers' ``ControlNetModel``.

    Attributes:
        control_layout: the layout; ``layout`` is that of the encoder.
    """

    def __init__(self, layout: ControlNetLayout) -> None:
        super().__init__(layout.encoder)
        self.control_layout = layout
        self.controlnet_cond_embedding = Hint(layout)
        self.controlnet_down_blocks = nn.ModuleList(
            nn.Conv2d(channels, channels, 1) for channels in skip_channels(layout.encoder)
        )
        channels = layout.encoder.levels[-1].channels
        self.controlnet_mid_block = nn.Conv2d(channels, channels, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the computation; blocks with gradient checkpointing round inside only."""
        assert self.controlnet_cond_embedding.conv_in.bias is not None
        return self.controlnet_cond_embedding.conv_in.bias.dtype  # never quantized

    def hint(self, picture: Levels) -> Tensor:
        """Read a picture, once for all steps; see ``Hint``."""
        return self.controlnet_cond_embedding(picture)

    def forward(
        self,
        latents: Latents,
        timesteps: Timesteps,
        prompt_embeds: PromptEmbeds | PromptKV,
        pooled_prompt_embeds: PooledEmbeds,
        time_ids: TimeIds,
        hint: Tensor,
    ) -> Additions:
        """Run the network once.

        Args:
            latents: as the UNet takes them; without mask and picture for inpainting.
            timesteps: as the UNet takes them, as the following.
            prompt_embeds: embeddings, or the keys and values that this network computed.
            pooled_prompt_embeds: the pooled text.
            time_ids: sizes and crop.
            hint: what ``hint`` returned, for each image.

        Returns:
            What is added to the UNet's skips and middle.
        """
        embedding = self.embed(timesteps, pooled_prompt_embeds, time_ids)
        contexts = contexts_of(prompt_embeds)
        x = self.conv_in(latents) + hint
        skips = [x]
        for block in cast(list[Block], self.down_blocks):
            x = block.resampled(block.down(x, embedding, contexts, skips), skips)
        if self.mid_block is not None:
            x = self.mid_block(x, embedding, contexts)
        convolutions = zip(self.controlnet_down_blocks, skips, strict=True)
        return Additions([convolve(skip) for convolve, skip in convolutions], self.controlnet_mid_block(x))

    @torch.no_grad()
    def copy_encoder(self, unet: Encoder) -> None:
        """Start a training: copy what the UNet's encoder has, and add nothing to its features.

        Only the outputs are set to zero. The published recipe also zeroes the hint's last convolution, which
        then learns late.
        """
        held = self.state_dict().keys()
        copied = {name: each for name, each in unet.state_dict().items() if name in held}
        self.load_state_dict(copied, strict=False)
        for layer in (*self.controlnet_down_blocks, self.controlnet_mid_block):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)


class Controlled(nn.Module):
    """A UNet with the ControlNet that guides it, as one network for training."""

    def __init__(self, unet: UNet, controlnet: ControlNet) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(self, picture: Levels, *inputs: Tensor) -> Latents:
        """Predict noise or velocity.

        Args:
            picture: what the ControlNet reads, for each image, at the size of the image.
            inputs: ``UNetInputs``, which both networks take.
        """
        additions = self.controlnet(*inputs, self.controlnet.hint(picture))
        return self.unet(*inputs, additions=additions)
