"""A new word for what images show: vectors for both text encoders, the only thing that is trained.

Textual inversion (2208.01618); for SDXL both encoders learn vectors of their own, as in sd-scripts and
diffusers. The vectors take the place of tokens, so no row of a vocabulary changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ssd1b.adapters.vectors import read_vectors
from ssd1b.embeddings import ENCODERS, embedding_of, find_words
from ssd1b.errors import FailedError, InputError, shown
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.layouts import ModelLayout
from ssd1b.models.text import TextEncoders
from ssd1b.saving import renewing, temporary_path
from ssd1b.weights.files import is_finite, write_tensors


def new_vectors(text: TextEncoders, settings: FinetuneSettings) -> dict[str, Tensor]:
    """Return the vectors before the training, by ``ENCODERS``, ``[vectors, hidden_size]`` in float32.

    They are those of the tokens of ``init_word``, repeated as often as necessary. Without a word they are
    random numbers with the mean and deviation of the vocabulary in each channel, from the settings' seed.

    Raises:
        InputError: the word has more tokens than there are vectors.
    """
    found: dict[str, Tensor] = {}
    pairs = ((text.encoder, text.tokenizer), (text.encoder_2, text.tokenizer_2))
    generator = torch.Generator().manual_seed(settings.train.seed)
    for name, (encoder, tokenizer) in zip(ENCODERS, pairs, strict=True):
        embedding = cast(nn.Embedding, encoder.text_model.embeddings["token_embedding"])
        rows = embedding.weight.detach().float()
        if settings.init_word is None:
            drawn = torch.randn(settings.vectors, rows.shape[1], generator=generator).to(rows.device)
            found[name] = rows.mean(0) + rows.std(0) * drawn
            continue
        ids = tokenizer.ids(settings.init_word)
        if not 1 <= len(ids) <= settings.vectors:
            raise InputError(
                f"init_word {shown(settings.init_word)} has {len(ids)} tokens: as many vectors are needed "
                f"(--vectors), got {settings.vectors}; or take another word"
            )
        found[name] = rows[[ids[index % len(ids)] for index in range(settings.vectors)]].clone()
    return found


def check_captions(captions: Iterable[str], word: str) -> None:
    """Check that some caption has the word, from which alone its vectors learn.

    Raises:
        InputError: none has.
    """
    if not any(True for caption in captions for _ in find_words(caption, [word])):
        raise InputError(
            f"no caption has the word {shown(word)}: write it where the subject is named, or give --template "
            "subject or style, whose captions replace those of the data"
        )


def write_embedding(
    path: Path, vectors: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write vectors in SDXL's format of embeddings, in float32.

    Raises:
        FailedError: they contain NaN or infinity; nothing is written.
        InputError: the file cannot be written.
    """
    if broken := next((name for name, each in vectors.items() if not is_finite(each)), None):
        raise FailedError(f"{broken} is NaN or infinite: not saved; take a lower learning rate")
    with renewing(path, overwrite=overwrite) as aside:
        write_tensors(aside, vectors, metadata)


def prove_embedding(folder: Path, vectors: Mapping[str, Tensor], layout: ModelLayout, word: str) -> None:
    """Write untrained vectors, read them as an image's settings do, and remove the file.

    Raises:
        FailedError: the file would not give the vectors.
    """
    path = temporary_path(folder)
    try:
        write_tensors(path, vectors, {})
        read: Sequence[Tensor] = read_vectors([embedding_of(path, word)], layout)
        if not all(each.equal(vectors[name].cpu()) for name, each in zip(ENCODERS, read, strict=True)):
            raise FailedError(f"the vectors of {shown(word)} could not be read again")
    finally:
        path.unlink(missing_ok=True)


def embedding_metadata(word: str) -> dict[str, str]:
    """Return what other programs show of an embedding, by Stability AI's keys, as sd-scripts writes them."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/textual-inversion",
        "modelspec.title": word,
        "modelspec.trigger_phrase": word,
    }
