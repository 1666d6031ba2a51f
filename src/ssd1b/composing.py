"""Compose prompts: apply styles, draw wildcards, find the LoRAs and embeddings that they name.

This module does not import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ssd1b.embeddings import Embedding, embedding_of, used_in
from ssd1b.loras import Lora, lora_of, read_tags
from ssd1b.styles import Style, apply_styles
from ssd1b.wildcards import Wildcards

HIRES_PROMPTS = ("hires_prompt", "hires_negative_prompt")
"""Settings with prompts of the second pass. Words are drawn in them, and embeddings found, as in a negative
prompt; styles are for the first pass."""


class Composed(NamedTuple):
    """A prompt as it is used and recorded, and the files that it names."""

    prompt: str
    negative: str | None
    loras: tuple[Lora, ...]
    embeddings: tuple[Embedding, ...]
    hires: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composer:
    """How prompts are composed.

    Attributes:
        names: of the styles, in the order in which they are put around a prompt.
        styles: all styles by name.
        wildcards: draws words; None draws none.
        lora_folder: where the files of tags are; None leaves tags as words.
        embedding_folder: where embeddings are that prompts use by name; None uses none of a folder.
        identify_lora: as ``lora_of``.
        identify_embedding: as ``embedding_of``.
    """

    names: tuple[str, ...] = ()
    styles: Mapping[str, Style]
    wildcards: Wildcards | None = None
    lora_folder: str | Path | None = None
    embedding_folder: str | Path | None = None
    identify_lora: Callable[..., Lora] = lora_of
    identify_embedding: Callable[[Path], Embedding] = embedding_of

    def compose(
        self,
        prompt: str,
        negative: str | None,
        seed: int,
        given: tuple[Embedding, ...] = (),
        hires: Mapping[str, str | None] = MappingProxyType({}),
    ) -> Composed:
        """Compose the prompts of an image.

        Args:
            prompt: as the user wrote it.
            negative: the same; None for none.
            seed: the image's, with which words are drawn.
            given: embeddings that the settings have.
            hires: prompts by the names in ``HIRES_PROMPTS``.

        Raises:
            InputError: a style, wildcard, adapter or embedding does not exist or cannot be read.
        """
        prompt, negative = apply_styles(prompt, negative, self.names, self.styles)
        second = {name: text for name, text in hires.items() if text is not None}
        if self.wildcards is not None:
            second = {name: self.wildcards.draw(text, seed) for name, text in second.items()}
            prompt = self.wildcards.draw(prompt, seed)
            negative = None if negative is None else self.wildcards.draw(negative, seed)
        loras: tuple[Lora, ...] = ()
        if self.lora_folder is not None:
            prompt, loras = read_tags(prompt, self.lora_folder, self.identify_lora)
        found: tuple[Embedding, ...] = ()
        if self.embedding_folder is not None:
            words = {each.word.lower() for each in given}
            texts = [prompt, negative or "", *second.values()]
            used = used_in(texts, self.embedding_folder, self.identify_embedding)
            found = tuple(each for each in used if each.word.lower() not in words)
        return Composed(prompt, negative, loras, found, second)
