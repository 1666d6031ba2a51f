"""Prompts to conditioning: two CLIP text encoders (Radford et al. 2021, 2103.00020), through transformers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssd1b.layouts import TextLayout
from ssd1b.prompts import chunk, parse_prompt
from ssd1b.tensors import PooledEmbeds, PromptEmbeds, TokenIds

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONTEXT = 77
"""Tokens of one chunk, begin and end token included."""


class Conditioning(NamedTuple):
    """What the UNet is told of a batch of prompts."""

    embeds: PromptEmbeds
    pooled: PooledEmbeds


class TextEncoder(nn.Module):
    """One CLIP text encoder; state-dict keys are those of the published files (``text_model.*``).

    transformers names the keys of its modules differently from version to version, so the network inside is
    hung up under the name it has in files.
    """

    def __init__(self, layout: TextLayout) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel  # seconds to import

        model = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=layout.hidden_size,
                num_hidden_layers=layout.layers,
                num_attention_heads=layout.heads,
                intermediate_size=layout.intermediate_size,
                hidden_act=layout.activation,
                vocab_size=layout.vocab_size,
                max_position_embeddings=layout.max_length,
                bos_token_id=layout.bos_token_id,
                eos_token_id=layout.eos_token_id,
                pad_token_id=layout.pad_token_id,
            )
        )
        self.layout = layout
        self.text_model = getattr(model, "text_model", model)
        self.text_projection = (
            None
            if layout.projection_dim is None
            else nn.Linear(layout.hidden_size, layout.projection_dim, bias=False)
        )

    def forward(self, ids: TokenIds) -> tuple[PromptEmbeds, Float[Tensor, "batch pooled"]]:
        """Encode chunks of 77 tokens.

        Returns:
            The penultimate layer's hidden states, without the final norm, ``[B, 77, hidden_size]``; and the
            last layer's state at the first end token, normalised, and projected if there is a projection.
        """
        output = self.text_model(input_ids=ids, output_hidden_states=True)
        end = (ids == self.layout.eos_token_id).int().argmax(dim=-1)
        pooled = output.last_hidden_state[torch.arange(len(ids), device=ids.device), end]
        return output.hidden_states[-2], pooled if self.text_projection is None else self.text_projection(
            pooled
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoders:
    """SDXL's pair of encoders, each with its tokenizer (their pad tokens differ)."""

    encoder: TextEncoder
    encoder_2: TextEncoder
    tokenizer: "CLIPTokenizer"
    tokenizer_2: "CLIPTokenizer"

    def tokenize(self, prompts: Sequence[str]) -> "list[Tokens]":
        """Cut prompts into chunks of 77 tokens, once per tokenizer.

        All prompts get as many chunks as the longest has; what they lack is chunks of an empty text.
        """
        pairs = ((self.tokenizer, self.encoder.layout), (self.tokenizer_2, self.encoder_2.layout))
        return [_tokenize(tokenizer, layout, prompts) for tokenizer, layout in pairs]

    @torch.inference_mode()
    def encode(self, tokens: "Sequence[Tokens]") -> Conditioning:
        """Encode tokenized prompts.

        Chunks are encoded one by one and laid end to end, as AUTOMATIC1111 and ComfyUI do; the pooled
        embedding is the first chunk's, from the second encoder.
        """
        embeds = []
        pooled = None
        for encoder, part in zip((self.encoder, self.encoder_2), tokens, strict=True):
            prompts, chunks = part.ids.shape[:2]
            device = encoder.text_model.final_layer_norm.weight.device
            states, ends = encoder(part.ids.flatten(0, 1).to(device))
            states = _emphasised(states, part.weights.flatten(0, 1).to(states))
            embeds.append(states.unflatten(0, (prompts, chunks)).flatten(1, 2))
            pooled = ends.unflatten(0, (prompts, chunks))[:, 0]
        assert pooled is not None
        return Conditioning(torch.cat(embeds, dim=-1), pooled)


class Tokens(NamedTuple):
    """Prompts for one encoder: ids and attention weights, ``[prompts, chunks, 77]``."""

    ids: Tensor
    weights: Tensor


def load_tokenizer(folder: Path) -> "CLIPTokenizer":
    """Open a model folder's own tokenizer (``vocab.json``, ``merges.txt``); no network."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def clip_tokenizer(vocabulary: dict[str, int], merges: list[Any], pad_token: str) -> "CLIPTokenizer":
    """Build CLIP's tokenizer for a checkpoint without; ``pad_token`` is "!" for the second encoder."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token)


def _tokenize(tokenizer: "CLIPTokenizer", layout: TextLayout, prompts: Sequence[str]) -> Tokens:
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    assert isinstance(comma, int)
    chunked = [chunk(_weighted_ids(tokenizer, prompt), comma_id=comma) for prompt in prompts]
    count = max(map(len, chunked))
    rows = [[*chunks, *[[]] * (count - len(chunks))] for chunks in chunked]
    pad = tokenizer.pad_token_id

    def framed(pairs: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
        room = CONTEXT - 2 - len(pairs)
        ids = [layout.bos_token_id, *(id for id, _ in pairs), layout.eos_token_id, *[pad] * room]
        return ids, [1.0, *(weight for _, weight in pairs), *[1.0] * (room + 1)]

    framed_rows = [[framed(pairs) for pairs in row] for row in rows]
    return Tokens(
        torch.tensor([[ids for ids, _ in row] for row in framed_rows]),
        torch.tensor([[weights for _, weights in row] for row in framed_rows]),
    )


def _weighted_ids(tokenizer: "CLIPTokenizer", prompt: str) -> Iterable[list[tuple[int, float]]]:
    for part in parse_prompt(prompt):
        ids = [tokenizer(segment.text, add_special_tokens=False).input_ids for segment in part]
        yield [(id, segment.weight) for segment, row in zip(part, ids, strict=True) for id in row]


def _emphasised(states: Tensor, weights: Tensor) -> Tensor:
    """Scale each token's state by its attention weight and restore each chunk's mean (A1111's "Original")."""
    if (weights == 1).all():
        return states
    scaled = states * weights[..., None]
    ratio = states.float().mean(dim=(1, 2), keepdim=True) / scaled.float().mean(dim=(1, 2), keepdim=True)
    return scaled * ratio.to(states)
