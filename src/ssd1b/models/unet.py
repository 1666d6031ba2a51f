"""One UNet for the whole family: SDXL, SSD-1B, Vega, KOALA and the miniatures differ only in their layout.

Podell et al. 2023 (2307.01952) for SDXL; Gupta et al. 2024 (2401.02677) for SSD-1B and Vega.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from ssd1b.layouts import UNetLayout
from ssd1b.models.attention import KeysValues, SpatialTransformer, TransformerBlock
from ssd1b.models.layers import (
    Downsample,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    silu_,
    sinusoidal_embedding,
)
from ssd1b.tensors import Latents, PooledEmbeds, PromptEmbeds, TimeIds, Timesteps, UNetLatents

RESNET_EPS = 1e-5

DeepFeatures: TypeAlias = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""``deep_features(x, compute)`` returns the features that the coarser levels pass to the finest one, shaped
``[B, C, H, W]`` like its own features ``x``. ``compute(x)`` computes them."""


class PromptKV(NamedTuple):
    """Keys and values of the prompts, computed once for all steps.

    Attributes:
        prompt_embeds: the embeddings from which they were computed.
        keys_values: for the cross-attention of each transformer block, in execution order; with those of
            pictures after them, which do not follow from the embeddings.
    """

    prompt_embeds: PromptEmbeds
    keys_values: list[KeysValues]


class Additions(NamedTuple):
    """What ControlNets and T2I-Adapters add to a UNet's features.

    Attributes:
        skips: to each feature map that is used again on the way up, in the order of their computation; empty
            for none.
        middle: to the output of the middle block.
        levels: to the output of each level on the way down, then of the middle block; empty for none.
    """

    skips: Sequence[Tensor] = ()
    middle: Tensor | None = None
    levels: Sequence[Tensor] = ()


class Encoder(nn.Module):
    """The way down and the middle of a UNet with its embeddings, which a ControlNet has, too."""

    def __init__(self, layout: UNetLayout) -> None:
        super().__init__()
        self.layout = layout
        width = layout.levels[0].channels
        embedding = 4 * width
        self.conv_in = nn.Conv2d(layout.in_channels, width, 3, padding=1)
        self.time_embedding = TimestepEmbedding(width, embedding, layout.guidance_embed_dim)
        self.add_embedding = TimestepEmbedding(6 * layout.time_ids_dim + layout.pooled_dim, embedding)
        down, channels = [], width
        for index, level in enumerate(layout.levels):
            last = index == len(layout.levels) - 1
            inputs = [channels, *[level.channels] * (len(level.down) - 1)]
            resample = None if last else Downsample(level.channels)
            down.append(Block(layout, level.channels, inputs, level.down, resample))
            channels = level.channels
        self.down_blocks = nn.ModuleList(down)
        self.mid_block = None if layout.mid is None else MidBlock(layout, channels, layout.mid)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the computation."""
        first = cast(ResnetBlock, cast(Block, self.down_blocks[0]).resnets[0])
        return first.norm1.weight.dtype  # norms are never quantized

    def cross_attention_kv(self, prompt_embeds: PromptEmbeds, *, without_text: int = 0) -> PromptKV:
        """Compute the keys and values of all cross-attentions, once for all steps.

        Args:
            prompt_embeds: as ``forward`` takes them.
            without_text: number of leading prompts whose embeddings are zeros. Projections without bias keep
                them zero, so nothing is computed for them, neither here nor in the steps.
        """
        texts = prompt_embeds[without_text:]
        return PromptKV(
            prompt_embeds, [block.attn2.keys_values(texts) for block in self._transformer_blocks()]
        )

    def _transformer_blocks(self) -> Iterator[TransformerBlock]:
        """Iterate over the blocks in execution order, which differs from the order of registration."""
        for part in self._parts():
            yield from (module for module in part.modules() if isinstance(module, TransformerBlock))

    def _parts(self) -> list[nn.Module]:
        """List the levels and the middle block in execution order."""
        return [*self.down_blocks, *([] if self.mid_block is None else [self.mid_block])]

    def embed(
        self,
        timesteps: Timesteps,
        pooled_prompt_embeds: PooledEmbeds,
        time_ids: TimeIds,
        guidance_embeds: Tensor | None = None,
    ) -> Tensor:
        """Embed times, sizes and pooled text for the resnets, ``[B, 4 x width]``; see ``forward``."""
        time = sinusoidal_embedding(timesteps, self.layout.levels[0].channels).to(self.dtype)
        sizes = sinusoidal_embedding(time_ids, self.layout.time_ids_dim).flatten(1)
        guidance = None if guidance_embeds is None else guidance_embeds.to(self.dtype)
        added = torch.cat([pooled_prompt_embeds.to(self.dtype), sizes.to(self.dtype)], dim=-1)
        return self.time_embedding(time, guidance) + self.add_embedding(added)


class UNet(Encoder):
    """Network that predicts the noise or velocity in noisy latents, given text and micro-conditioning.

    State-dict keys and shapes are those of diffusers' ``UNet2DConditionModel``.
    """

    def __init__(self, layout: UNetLayout) -> None:
        super().__init__(layout)
        skips = skip_channels(layout)  # of each feature map used again on the way up
        up, channels = [], layout.levels[-1].channels
        for index, level in enumerate(reversed(layout.levels)):
            last = index == len(layout.levels) - 1
            inputs = [c + skips.pop() for c in (channels, *[level.channels] * (len(level.up) - 1))]
            resample = None if last else Upsample(level.channels)
            up.append(Block(layout, level.channels, inputs, level.up, resample))
            channels = level.channels
        assert not skips, "every skip must be used on the way up"
        self.up_blocks = nn.ModuleList(up)
        self.conv_norm_out = nn.GroupNorm(layout.norm_groups, channels, eps=RESNET_EPS)
        self.conv_out = nn.Conv2d(channels, layout.out_channels, 3, padding=1)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the computation; blocks with gradient checkpointing round inside only."""
        return self.conv_norm_out.weight.dtype

    def _parts(self) -> list[nn.Module]:
        return [*super()._parts(), *self.up_blocks]

    def forward(
        self,
        latents: UNetLatents,
        timesteps: Timesteps,
        prompt_embeds: PromptEmbeds | PromptKV,
        pooled_prompt_embeds: PooledEmbeds,
        time_ids: TimeIds,
        guidance_embeds: Tensor | None = None,
        deep_features: DeepFeatures | None = None,
        additions: Additions | None = None,
    ) -> Latents:
        """Run the network once.

        Args:
            latents: noisy latents at unit variance, ``x / sqrt(sigma^2 + 1)``; for inpainting mask and masked
                picture after them.
            timesteps: one diffusion time per image, in [0, 999].
            prompt_embeds: penultimate hidden states of both text encoders, or their keys and values.
            pooled_prompt_embeds: projected end-of-text state of the second text encoder.
            time_ids: original size, crop, target size in pixels.
            guidance_embeds: ``[B, guidance_embed_dim]``, for LCM-distilled layouts only.
            deep_features: replaces the computation of the coarser levels, see ``DeepFeatures``; for layouts
                whose finest level has no cross-attention, like all published ones.
            additions: what control networks add; not together with ``deep_features``.

        Returns:
            The prediction, as large as the noisy latents.
        """
        embedding = self.embed(timesteps, pooled_prompt_embeds, time_ids, guidance_embeds)
        return self.predict(latents, embedding, prompt_embeds, deep_features, additions)

    def predict(
        self,
        latents: UNetLatents,
        embedding: Tensor,
        prompt_embeds: PromptEmbeds | PromptKV,
        deep_features: DeepFeatures | None = None,
        additions: Additions | None = None,
    ) -> Latents:
        """Predict noise or velocity, given the ``embedding`` from ``embed``; see ``forward``."""
        contexts = contexts_of(prompt_embeds)
        down, up = cast(list[Block], self.down_blocks), cast(list[Block], self.up_blocks)
        skips: list[Tensor] = []
        added = Additions() if additions is None else additions
        levels = [*added.levels]

        def deep(x: Tensor) -> Tensor:
            """Apply all levels except the finest."""
            x = down[0].resampled(x, skips, levels)
            for block in down[1:]:
                x = block.resampled(block.down(x, embedding, contexts, skips, levels), skips, levels)
            if self.mid_block is not None:
                x = self.mid_block(x, embedding, contexts)
            x = x + levels.pop(0) if levels else x
            x = x if added.middle is None else x + added.middle
            for index, addition in enumerate(added.skips):
                skips[index] = skips[index] + addition
            for block in up[:-1]:
                x = block.resampled(block.up(x, embedding, contexts, skips), skips)
            return x

        x = self.conv_in(latents)
        skips.append(x)
        x = down[0].down(x, embedding, contexts, skips, levels)
        x = deep(x) if deep_features is None else deep_features(x, deep)
        x = up[-1].up(x, embedding, contexts, skips)
        return self.conv_out(silu_(self.conv_norm_out(x)))


def contexts_of(prompt_embeds: PromptEmbeds | PromptKV) -> Iterator[Tensor | KeysValues]:
    """Iterate over what each cross-attention attends to, in execution order."""
    return iter(prompt_embeds.keys_values) if isinstance(prompt_embeds, PromptKV) else repeat(prompt_embeds)


def skip_channels(layout: UNetLayout) -> list[int]:
    """List the channels of the feature maps that are used again on the way up, in execution order."""
    channels = [layout.levels[0].channels]
    for level in layout.levels:
        channels += [level.channels] * (len(level.down) + (level is not layout.levels[-1]))
    return channels


class Block(nn.Module):
    """One level on the way down or up: resnets with a transformer each (none for depth 0), a resampler."""

    def __init__(
        self,
        layout: UNetLayout,
        channels: int,
        inputs: list[int],
        depths: tuple[int, ...],
        resample: Downsample | Upsample | None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(layout, c, channels) for c in inputs)
        self.attentions = nn.ModuleList(_transformer(layout, channels, d) for d in depths if d) or None
        self.downsamplers = nn.ModuleList([resample]) if isinstance(resample, Downsample) else None
        self.upsamplers = nn.ModuleList([resample]) if isinstance(resample, Upsample) else None

    def down(
        self,
        x: Tensor,
        embedding: Tensor,
        contexts: Iterator[Tensor | KeysValues],
        skips: list[Tensor],
        levels: list[Tensor] | None = None,
    ) -> Tensor:
        """Apply resnets and transformers, and append each output to ``skips``.

        A level with transformers adds the first of ``levels`` to its output here, before it is resampled.
        """
        for resnet, attention in self._layers():
            x = resnet(x, embedding)
            x = x if attention is None else attention(x, contexts)
            skips.append(x)
        return x if self.attentions is None else _with_next(levels, x, skips)

    def up(
        self, x: Tensor, embedding: Tensor, contexts: Iterator[Tensor | KeysValues], skips: list[Tensor]
    ) -> Tensor:
        """Apply resnets and transformers, each to its input concatenated with the last of ``skips``."""
        for resnet, attention in self._layers():
            x = resnet(torch.cat([x, skips.pop()], dim=1), embedding)
            x = x if attention is None else attention(x, contexts)
        return x

    def resampled(self, x: Tensor, skips: list[Tensor], levels: list[Tensor] | None = None) -> Tensor:
        """Resample for the next level: halve and append to ``skips``, or double to the last skip's size.

        A level without transformers adds the first of ``levels`` to its output here, as diffusers does.
        """
        for downsample in self.downsamplers or ():
            x = downsample(x)
            skips.append(x)
        for upsample in self.upsamplers or ():
            x = upsample(x, skips[-1].shape[-2:])
        return x if self.attentions is not None else _with_next(levels, x, skips)

    def _layers(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Iterate over the resnets, each with the transformer that follows it, if any."""
        attentions = self.attentions or [None] * len(self.resnets)
        return zip(self.resnets, attentions, strict=True)


def _with_next(levels: list[Tensor] | None, x: Tensor, skips: list[Tensor]) -> Tensor:
    """Add the first of ``levels``, if any, to a level's output, which is the last of ``skips``."""
    if levels:
        x = skips[-1] = x + levels.pop(0)
    return x


class MidBlock(nn.Module):
    """The middle block: resnet, transformer, resnet in SDXL; a single resnet (``depth`` 0) in SSD-1B."""

    def __init__(self, layout: UNetLayout, channels: int, depth: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(layout, channels, channels) for _ in range(2 if depth else 1))
        self.attentions = nn.ModuleList([_transformer(layout, channels, depth)]) if depth else None

    def forward(self, x: Tensor, embedding: Tensor, contexts: Iterator[Tensor | KeysValues]) -> Tensor:
        """``[B, C, H, W] -> [B, C, H, W]``; see ``SpatialTransformer``."""
        x = self.resnets[0](x, embedding)
        if self.attentions is not None:
            x = self.resnets[1](self.attentions[0](x, contexts), embedding)
        return x


def _resnet(layout: UNetLayout, in_channels: int, out_channels: int) -> ResnetBlock:
    time_channels = 4 * layout.levels[0].channels
    return ResnetBlock(
        in_channels, out_channels, groups=layout.norm_groups, eps=RESNET_EPS, time_channels=time_channels
    )


def _transformer(layout: UNetLayout, channels: int, depth: int) -> SpatialTransformer:
    return SpatialTransformer(
        channels,
        depth,
        head_dim=layout.head_dim,
        context_channels=layout.cross_attention_dim,
        groups=layout.norm_groups,
    )
