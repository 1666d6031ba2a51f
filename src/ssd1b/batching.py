"""Which pictures may be drawn at once, so that each comes out as it does alone, up to rounding."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from ssd1b.models.text import chunk_count
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.settings import SETTINGS, GenerationSettings

SHARED = tuple(name for name, setting in SETTINGS.items() if not setting.per_picture)
"""Settings that all pictures of a batch have in common."""

Item = TypeVar("Item")


def batch_key(settings: GenerationSettings, tokenizers: Sequence[CLIPTokenizer]) -> tuple[Hashable, ...]:
    """Give the properties that all pictures of a batch have in common.

    Beside ``SHARED`` that is the number of chunks that a picture's prompt and negative prompt are padded to.
    Cross-attention reads the padding: padded to a neighbour's length, a prompt draws another picture.

    Args:
        settings: of one picture.
        tokenizers: of the model's text encoders.
    """
    chunks = chunk_count(tokenizers, (settings.prompt, settings.negative_prompt or ""))
    return (*(getattr(settings, name) for name in SHARED), chunks)


def batch_limit(settings: GenerationSettings, limit: int) -> int:
    """Lower the number of pictures in a batch to 1 where drawing them at once would change them.

    Feature reuse decides for the whole batch whether features have changed too much to be kept.
    """
    return 1 if settings.feature_reuse else max(1, limit)


def batches(
    items: Iterable[Item], key: Callable[[Item], Hashable], limit: Callable[[Item], int]
) -> list[list[Item]]:
    """Divide items into batches of equal keys, ordered by each batch's first item.

    Args:
        items: in the order in which they are wanted.
        key: items of different keys are never in one batch.
        limit: the largest batch that an item may be in, at least 1; equal for equal keys.
    """
    found: list[list[Item]] = []
    filling: dict[Hashable, list[Item]] = {}
    for item in items:
        same = key(item)
        if len(filling.get(same, ())) in (0, limit(item)):
            filling[same] = []
            found.append(filling[same])
        filling[same].append(item)
    return found
