"""What ``ssd1b generate`` makes of a prompt: styles, drawn words, and the files that it names; no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import click

from ssd1b.cli.paths import PATH
from ssd1b.embeddings import Embedding, used_in
from ssd1b.errors import InputError
from ssd1b.loras import Lora, read_tags
from ssd1b.styles import Style, apply_styles, read_styles
from ssd1b.wildcards import Wildcards


class Composed(NamedTuple):
    """A prompt as it is used and recorded, and the files that it names."""

    prompt: str
    negative: str | None
    loras: tuple[Lora, ...]
    embeddings: tuple[Embedding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composer:
    """How prompts are composed.

    Attributes:
        names: of the styles, in the order in which they are put around a prompt.
        styles: all styles by name.
        wildcards: draws words; None draws none.
        lora_folder: where the files of tags are; None leaves tags as words.
        embedding_folder: where embeddings are that prompts use by name; None uses none of a folder.
    """

    names: tuple[str, ...] = ()
    styles: Mapping[str, Style]
    wildcards: Wildcards | None = None
    lora_folder: str | None = None
    embedding_folder: str | None = None

    def compose(
        self, prompt: str, negative: str | None, seed: int, given: tuple[Embedding, ...] = ()
    ) -> Composed:
        """Compose a prompt and a negative prompt.

        Args:
            prompt: as the user wrote it.
            negative: the same; None for none.
            seed: the image's, with which words are drawn.
            given: embeddings that the settings have.

        Raises:
            InputError: a style, wildcard, adapter or embedding does not exist or cannot be read.
        """
        prompt, negative = apply_styles(prompt, negative, self.names, self.styles)
        if self.wildcards is not None:
            prompt = self.wildcards.draw(prompt, seed)
            negative = None if negative is None else self.wildcards.draw(negative, seed)
        loras: tuple[Lora, ...] = ()
        if self.lora_folder is not None:
            prompt, loras = read_tags(prompt, self.lora_folder)
        found: tuple[Embedding, ...] = ()
        if self.embedding_folder is not None:
            words = {each.word.lower() for each in given}
            used = used_in([prompt, negative or ""], self.embedding_folder)
            found = tuple(each for each in used if each.word.lower() not in words)
        return Composed(prompt, negative, loras, found)


def composing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``composer``, a ``Composer``."""

    @click.option(
        "--lora-folder", type=PATH, metavar="FOLDER",
        help="Where the files of <lora:NAME:1> in prompts are; without it they are plain words.",
    )  # fmt: skip
    @click.option(
        "--embedding-folder", type=PATH, metavar="FOLDER",
        help="Where embeddings are, which prompts use by the names of their files.",
    )  # fmt: skip
    @click.option("--style", multiple=True, metavar="NAME", help="A style of --styles; may be repeated.")
    @click.option(
        "--styles", type=PATH, metavar="FILE", help="AUTOMATIC1111's styles.csv, or JSON of Fooocus."
    )
    @click.option(
        "--dynamic-prompts", is_flag=True, help="Draw one of {a|b} in prompts, anew for each image."
    )
    @click.option(
        "--wildcard-folder", type=PATH, metavar="FOLDER",
        help="Also draw a line of NAME.txt in this folder for __NAME__.",
    )  # fmt: skip
    @wraps(command)
    def bundled(
        *args: Any,
        lora_folder: str | None,
        embedding_folder: str | None,
        style: tuple[str, ...],
        styles: str | None,
        dynamic_prompts: bool,
        wildcard_folder: str | None,
        **rest: Any,
    ) -> None:
        if style and styles is None:
            raise InputError("--style needs --styles, the file with the styles")
        draws = dynamic_prompts or wildcard_folder is not None
        composer = Composer(
            names=style, styles={} if styles is None else read_styles(styles),
            wildcards=Wildcards.of(wildcard_folder) if draws else None,
            lora_folder=lora_folder, embedding_folder=embedding_folder,
        )  # fmt: skip
        command(*args, composer=composer, **rest)

    return bundled
