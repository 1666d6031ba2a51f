"""SDXL's two CLIP text encoders, from prompts to conditioning (Radford et al. 2021, 2103.00020)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple, cast
from weakref import ref

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssd1b.embeddings import Words, find_words
from ssd1b.layouts import TextLayout, VisionLayout
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.prompts import chunk, parse_prompt
from ssd1b.tensors import PooledEmbeds, PromptEmbeds, TokenIds

CONTEXT = 77
"""Tokens of a chunk, including begin and end token."""

EPS = 1e-5

FIRST_VECTOR = 2**20
"""Token id of the first vector of the embeddings; vocabularies are smaller."""


class Conditioning(NamedTuple):
    """A batch of encoded prompts, as input of the UNet."""

    embeds: PromptEmbeds
    pooled: PooledEmbeds


def quick_gelu(x: Tensor) -> Tensor:
    """Apply the approximation of GELU in OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class TextAttention(nn.Module):
    """Causal multi-head attention, ``[B, T, C] -> [B, T, C]``.

    ``attend`` is the kernel, ``(q, k, v) -> [B, heads, T, C / heads]``, which can be replaced per module.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Apply torch's causal attention."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projections)
        return self.out_proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


class TextLayer(nn.Module):
    """Attention and a perceptron, each normalised before and added to its input; keeps ``[B, T, C]``."""

    def __init__(self, layout: TextLayout | VisionLayout) -> None:
        super().__init__()
        channels = layout.hidden_size
        self.self_attn = TextAttention(channels, layout.heads)
        self.layer_norm1 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = nn.ModuleDict({
            "fc1": nn.Linear(channels, layout.intermediate_size),
            "fc2": nn.Linear(layout.intermediate_size, channels),
        })  # fmt: skip
        self.layer_norm2 = nn.LayerNorm(channels, eps=EPS)
        self.activation = ACTIVATIONS[layout.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(x))))


class TextModel(nn.Module):
    """CLIP's text transformer, without projection."""

    def __init__(self, layout: TextLayout) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({
            "token_embedding": _embedding(layout.vocab_size, layout.hidden_size),
            "position_embedding": _embedding(layout.max_length, layout.hidden_size),
        })  # fmt: skip
        layers = nn.ModuleList(TextLayer(layout) for _ in range(layout.layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(layout.hidden_size, eps=EPS)

    def forward(self, ids: TokenIds, vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``[B, T]`` -> states of the penultimate layer, and normalised states of the last, ``[B, T, C]``.

        ``vectors`` ``[n, C]`` are what the ids from ``FIRST_VECTOR`` on stand for.
        """
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings["token_embedding"](ids.where(ids < FIRST_VECTOR, 0))
        if vectors is not None:
            new = ids >= FIRST_VECTOR
            x[new] = vectors[ids[new] - FIRST_VECTOR].to(x)
        x = x + self.embeddings["position_embedding"](positions)
        *layers, last = cast(nn.ModuleList, self.encoder["layers"])
        for layer in layers:
            x = layer(x)
        return x, self.final_layer_norm(last(x))


def _embedding(count: int, channels: int) -> nn.Embedding:
    """Make an embedding of zeros; torch's own initialization imports the compiler on the meta device: 1 s."""
    return nn.Embedding(count, channels, _weight=torch.zeros(count, channels))


class TextEncoder(nn.Module):
    """One CLIP text encoder; state-dict keys are those of the published files (``text_model.*``)."""

    def __init__(self, layout: TextLayout) -> None:
        super().__init__()
        self.layout = layout
        self.text_model = TextModel(layout)
        self.text_projection = (
            None
            if layout.projection_dim is None
            else nn.Linear(layout.hidden_size, layout.projection_dim, bias=False)
        )

    def forward(
        self, ids: TokenIds, vectors: Tensor | None = None
    ) -> tuple[PromptEmbeds, Float[Tensor, "batch pooled"]]:
        """Encode chunks of 77 tokens.

        Args:
            ids: the tokens.
            vectors: of the ids from ``FIRST_VECTOR`` on, ``[n, hidden_size]``; None if there are none.

        Returns:
            Hidden states of the penultimate layer, without the final norm, ``[B, 77, hidden_size]``; and the
            last layer's normalised state at the first end token, projected if there is a projection.
        """
        states, last = self.text_model(ids, vectors)
        end = (ids == self.layout.eos_token_id).int().argmax(dim=-1)
        pooled = last[torch.arange(len(ids), device=ids.device), end]
        return states, pooled if self.text_projection is None else self.text_projection(pooled)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoders:
    """SDXL's pair of encoders, each with its tokenizer (their pad tokens differ)."""

    encoder: TextEncoder
    encoder_2: TextEncoder
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer

    def without_weights(self) -> "TextEncoders":
        """Return encoders on the meta device, which can only tokenize, for a process that does no more."""
        with torch.device("meta"):
            encoder, encoder_2 = (TextEncoder(each.layout) for each in (self.encoder, self.encoder_2))
        return replace(self, encoder=encoder, encoder_2=encoder_2)

    def tokenize(self, prompts: Sequence[str], words: Words = (), chunks: int = 1) -> "list[Tokens]":
        """Split prompts into chunks of 77 tokens, once per tokenizer.

        All prompts are padded with empty chunks to the number of chunks of the longest.

        Args:
            prompts: the prompts.
            words: those that stand for embeddings, each of whose vectors takes the place of a token.
            chunks: pad to at least so many.
        """
        pairs = ((self.tokenizer, self.encoder.layout), (self.tokenizer_2, self.encoder_2.layout))
        count = max(chunks, chunk_count([tokenizer for tokenizer, _ in pairs], prompts, words))
        return [_tokenize(tokenizer, layout, prompts, count, words) for tokenizer, layout in pairs]

    @torch.inference_mode()
    def encode(
        self, tokens: "Sequence[Tokens]", vectors: Sequence[Tensor | None] = (None, None)
    ) -> Conditioning:
        """Encode tokenized prompts, without gradients; see ``encode_tokens``."""
        device = self.encoder.text_model.final_layer_norm.weight.device
        return encode_tokens((self.encoder, self.encoder_2), tokens, vectors, device)


class Tokens(NamedTuple):
    """Tokenized prompts for one encoder: ids and attention weights, ``[prompts, chunks, 77]``."""

    ids: Tensor
    weights: Tensor


def encode_tokens(
    encoders: Sequence[Callable[..., tuple[Tensor, Tensor]]],
    tokens: Sequence[Tokens],
    vectors: Sequence[Tensor | None],
    device: torch.device,
) -> Conditioning:
    """Encode tokenized prompts; gradients reach the encoders and the vectors.

    Chunks are encoded separately and concatenated, as in AUTOMATIC1111 and ComfyUI; the pooled embedding is
    the first chunk's, from the second encoder.

    Args:
        encoders: both, as ``TextEncoder``.
        tokens: for each encoder, from ``TextEncoders.tokenize``.
        vectors: of the embeddings, for each encoder, ``[n, hidden_size]`` in the order of the words.
        device: of the encoders.
    """
    embeds = []
    pooled = None
    for encoder, part, new in zip(encoders, tokens, vectors, strict=True):
        prompts, chunks = part.ids.shape[:2]
        ids = part.ids.flatten(0, 1).to(device)
        states, ends = encoder(ids) if new is None else encoder(ids, new.to(device))
        states = _emphasised(states, part.weights.flatten(0, 1).to(states))
        embeds.append(states.unflatten(0, (prompts, chunks)).flatten(1, 2))
        pooled = ends.unflatten(0, (prompts, chunks))[:, 0]
    assert pooled is not None
    return Conditioning(torch.cat(embeds, dim=-1), pooled)


def chunk_count(tokenizers: Iterable[CLIPTokenizer], prompts: Iterable[str], words: Words = ()) -> int:
    """Count the chunks of the longest prompt, to which all are padded; see ``TextEncoders.tokenize``.

    A prompt may have more chunks with one tokenizer than with the other: "!" is SDXL's second padding token,
    and there always a separate token.
    """
    texts = list(prompts)
    return max((_count(ref(tokenizer), text, words) for tokenizer in tokenizers for text in texts), default=1)


@lru_cache(maxsize=4096)
def _count(tokenizer: ref[CLIPTokenizer], prompt: str, words: Words) -> int:
    """Count a prompt's chunks; cached, because a sweep asks for a few prompts a million times.

    The cache has weak references: a tokenizer takes 25 MB, and is freed with its model.
    """
    found = tokenizer()
    assert found is not None
    return len(_chunks(found, prompt, words))


def _chunks(tokenizer: CLIPTokenizer, prompt: str, words: Words) -> list[list[tuple[int, float]]]:
    return chunk(
        _weighted_ids(tokenizer, prompt, words),
        comma_id=tokenizer.vocabulary.get(",</w>", -1),
        together={ids.start: len(ids) for ids in _vector_ids(words)},
    )


def _tokenize(
    tokenizer: CLIPTokenizer, layout: TextLayout, prompts: Sequence[str], count: int, words: Words
) -> Tokens:
    chunked = [_chunks(tokenizer, prompt, words) for prompt in prompts]
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


def _weighted_ids(tokenizer: CLIPTokenizer, prompt: str, words: Words) -> Iterable[list[tuple[int, float]]]:
    for part in parse_prompt(prompt):
        ids = [_ids(tokenizer, segment.text, words) for segment in part]
        yield [(id, segment.weight) for segment, row in zip(part, ids, strict=True) for id in row]


def _ids(tokenizer: CLIPTokenizer, text: str, words: Words) -> list[int]:
    """Tokenize a text, with the ids of an embedding's vectors for its word."""
    found: list[int] = []
    position, vectors = 0, _vector_ids(words)
    for start, end, word in find_words(text, [word for word, _ in words]):
        found += [*tokenizer.ids(text[position:start]), *vectors[word]]
        position = end
    return found + tokenizer.ids(text[position:])


def _vector_ids(words: Words) -> list[range]:
    """Return the token ids of each embedding's vectors."""
    ends = accumulate((count for _, count in words), initial=FIRST_VECTOR)
    return [range(start, end) for start, end in pairwise(ends)]


def _emphasised(states: Tensor, weights: Tensor) -> Tensor:
    """Scale each token's state by its attention weight and restore each chunk's mean (A1111's "Original")."""
    if (weights == 1).all():
        return states
    scaled = states * weights[..., None]
    ratio = states.float().mean(dim=(1, 2), keepdim=True) / scaled.float().mean(dim=(1, 2), keepdim=True)
    return scaled * ratio.to(states)
