"""Batching rules: images in a batch must come out as they do alone, up to rounding."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from ssd1b.embeddings import words_of
from ssd1b.models.text import chunk_count
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.settings import SETTINGS, GenerationSettings

SHARED = tuple(name for name, setting in SETTINGS.items() if not setting.per_picture)
"""Settings that must be equal within a batch."""

Item = TypeVar("Item")


def batch_key(settings: GenerationSettings, tokenizers: Sequence[CLIPTokenizer]) -> tuple[Hashable, ...]:
    """Return the properties that must be equal within a batch.

    These are ``SHARED`` and the number of chunks that prompts and negative prompts are padded to.
    Cross-attention reads the padding, so padding a prompt to another's length would change its image.

    Args:
        settings: one image's settings.
        tokenizers: the tokenizers of the model's text encoders.
    """
    chunks = tuple(
        chunk_count(tokenizers, texts_of(each), words_of(each.embeddings)) for each, _ in settings.passes
    )
    return (*(getattr(settings, name) for name in SHARED), chunks)


def texts_of(settings: GenerationSettings) -> set[str]:
    """Return everything that is encoded for an image: its prompts, negative prompts, and their changes."""
    return {text or "" for pair in settings.prompts() for text in pair}


def batch_limit(settings: GenerationSettings, limit: int) -> int:
    """Limit batches to one image with feature reuse, which recomputes a batch as a whole."""
    return 1 if settings.feature_reuse else max(1, limit)


def batches(
    items: Iterable[Item], key: Callable[[Item], Hashable], limit: Callable[[Item], int]
) -> list[list[Item]]:
    """Group items with equal keys into batches, ordered by each batch's first item.

    Args:
        items: in the desired order.
        key: items with different keys never share a batch.
        limit: the largest batch that an item may be in, at least 1; equal for equal keys.
    """
    found: list[list[Item]] = []
    filling: dict[Hashable, list[Item]] = {}
    for item in items:
        item_key = key(item)
        if len(filling.get(item_key, ())) in (0, limit(item)):
            filling[item_key] = []
            found.append(filling[item_key])
        filling[item_key].append(item)
    return found
