"""Reading the vectors of embeddings for both text encoders."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from safetensors import SafetensorError
from torch import Tensor

from ssd1b.embeddings import ENCODERS, MAX_BYTES, Embedding, keys_of
from ssd1b.errors import ConflictError, InputError
from ssd1b.files import named
from ssd1b.layouts import ModelLayout
from ssd1b.weights.files import is_finite, open_file


def read_vectors(embeddings: Sequence[Embedding], layout: ModelLayout) -> tuple[Tensor, Tensor]:
    """Read the vectors of embeddings, one after the other.

    Args:
        embeddings: at least one.
        layout: the model's layout.

    Returns:
        ``[n, hidden_size]`` in float32 for each text encoder.

    Raises:
        InputError: a file is gone or has changed, is for other text encoders, or holds NaN or infinity.
    """
    pairs = [_read(each, layout) for each in embeddings]
    return torch.cat([first for first, _ in pairs]), torch.cat([second for _, second in pairs])


@lru_cache(maxsize=64)
def _read(embedding: Embedding, layout: ModelLayout) -> tuple[Tensor, Tensor]:
    path = embedding.file.verified(most=MAX_BYTES)
    handle = open_file(path)
    found: list[Tensor] = []
    keys = keys_of(embedding.word, handle.keys())
    for name, key, text in zip(ENCODERS, keys, (layout.text_encoder, layout.text_encoder_2), strict=True):
        try:
            vectors = handle.get_tensor(key)
        except SafetensorError as error:
            raise InputError(f"{named(path)}: it has no {key}") from error
        vectors = vectors.reshape(-1, vectors.shape[-1])
        if vectors.shape[1] != text.hidden_size:
            raise InputError(
                f"{named(path)}: {name} has {vectors.shape[1]} channels, and this model's text encoder "
                f"{text.hidden_size}"
            )
        if len(vectors) != embedding.vectors:
            raise ConflictError(f"{named(path)}: it has {len(vectors)} vectors, expected {embedding.vectors}")
        if not vectors.is_floating_point() or not is_finite(vectors):
            raise InputError(f"{named(path)}: {key} must hold finite floating-point numbers")
        found.append(vectors.float())
    first, second = found
    return first, second
