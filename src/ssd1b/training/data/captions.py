"""Captions during training: choose a line, shuffle and drop tags, prepend a trigger word."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssd1b.training.data.pictures import digest_of

_SEPARATOR = ","
"""Between tags, as in sd-scripts."""


class Variation(NamedTuple):
    """How the tags of captions are changed at random.

    Attributes:
        shuffle: whether to shuffle the tags after the kept ones.
        keep: number of tags at the beginning that stay as they are (sd-scripts ``keep_tokens``).
        dropout: share of the other tags that are left out (sd-scripts ``caption_tag_dropout_rate``). One tag
            always remains: whole captions are dropped by ``DataSettings.caption_dropout``.
    """

    shuffle: bool
    keep: int
    dropout: float


def varied(caption: str, how: Variation, rng: np.random.Generator) -> str:
    """Shuffle the tags of a caption, the parts between commas, and leave some out."""
    tags = [tag.strip() for tag in caption.split(_SEPARATOR) if tag.strip()]
    kept, others = tags[: how.keep], tags[how.keep :]
    if how.shuffle:
        others = [others[index] for index in rng.permutation(len(others))]
    left = [tag for tag, drawn in zip(others, rng.random(len(others)), strict=True) if drawn >= how.dropout]
    return f"{_SEPARATOR} ".join([*kept, *left] or tags[:1]) or caption


def variants(caption: str, how: Variation, count: int) -> list[str]:
    """Return variants of a caption, drawn by the caption alone, so that trainings share them in a cache."""
    seed = int(digest_of(caption.encode()), 16)
    return [varied(caption, how, np.random.default_rng((index, seed))) for index in range(count)]


def with_trigger(caption: str, trigger: str | None) -> str:
    """Put a trigger in front of a caption that does not contain it as a word."""
    if trigger is None or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger}{_SEPARATOR} {caption}"


def lines_of(captions: Sequence[str]) -> list[str]:
    """Return each line that is not empty as a caption of its own."""
    return [line for caption in captions for line in caption.splitlines() if line.strip()]
