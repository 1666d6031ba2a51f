"""Options of what ``ssd1b generate`` makes of a prompt: styles, drawn words, and the files that it names."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ssd1b.cli.paths import PATH
from ssd1b.composing import Composer
from ssd1b.errors import InputError
from ssd1b.styles import read_styles
from ssd1b.wildcards import Wildcards


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
