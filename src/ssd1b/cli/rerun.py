"""``ssd1b rerun``: generate an image again, and compare the pixels."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ssd1b.cli.command import Command
from ssd1b.cli.messages import warn
from ssd1b.cli.options import ModelChoice, check_settings, execution_options, model_options, out_option
from ssd1b.cli.paths import PATH, echo_path
from ssd1b.errors import line
from ssd1b.recipe import Parameters, Recipe

if TYPE_CHECKING:
    from PIL import Image

    from ssd1b.actions.rerun import Reproduction
    from ssd1b.pipeline import Pipeline, Watch
    from ssd1b.settings import GenerationSettings


@click.command("rerun", cls=Command)
@click.argument("image", type=PATH, metavar="IMAGE")
@out_option
@model_options
@execution_options
@click.option(
    "--trust-recipe", "trusted", is_flag=True,
    help="Use the model that the image names, whatever it is: a path is opened, a repository downloaded "
    "without your token.",
)  # fmt: skip
@click.option(
    "--inputs", type=PATH, metavar="FOLDER",
    help="Folder with the pictures and networks that the image was generated from, if they are neither "
    "beside it nor where they were.",
)  # fmt: skip
def command(image: str, out: str, choice: ModelChoice, trusted: bool, inputs: str | None) -> None:
    """Generate an image again from the recipe inside it, and report whether every pixel is the same.

    Model, device and number format come from the recipe unless given here. On the same machine the result is
    bit-equal; other versions, devices or numbers of threads may round differently.

    A recipe may come from a stranger. Models that are built in, published under a short name or in the cache
    are used without asking; for others, give --model or --trust-recipe.

    Pictures, LoRAs and ControlNets that the image was generated from are looked for beside it and where they
    were, and used only if they have not changed.

    \b
    Examples:
      ssd1b rerun pictures/7-an-astronaut-riding-a-horse.png
      ssd1b rerun pictures/7-a-fox.png --trust-recipe
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.actions.rerun import reproduce
    from ssd1b.cli import display
    from ssd1b.images import check_destination

    @contextmanager
    def start(pipeline: "Pipeline", settings: "GenerationSettings") -> "Generator[Watch, None, None]":
        check_destination(out, recipe=pipeline.recipe(settings))
        with display.watched(pipeline, settings.total_steps) as watch:
            yield watch

    def inspect(source: Recipe | Parameters) -> None:
        if isinstance(source, Parameters):
            check_settings([source.prompt], source.settings())
            _warn_about(source, choice.name)

    check_destination(out)
    result = reproduce(
        image,
        choice.model,
        choice.loading(),
        trust_recipe=trusted,
        inputs=inputs,
        inspect=inspect,
        start=start,
    )
    echo_path(display.save(result.picture, out))
    if isinstance(result.source, Recipe):
        click.echo(_verdict(result), err=True)
        if result.changes:
            click.echo(line(f"generated under other circumstances: {', '.join(result.changes)}"), err=True)


def _warn_about(source: Parameters, model: str) -> None:
    warn(
        f"no recipe in the file, only {source.program}'s text, which is incomplete: "
        f"generating with {model}, expect another image"
    )
    if left_out := source.unreproduced():
        warn(f"not reproduced: {', '.join(left_out)}")


def _verdict(result: "Reproduction") -> str:
    original, image, difference = result.original, result.picture.image, result.largest_difference
    if original is None:
        return "only PNG stores exact pixels: bit-equality cannot be checked"
    if difference is None:
        return f"not bit-equal: {_size(original)} in the file, {_size(image)} by its recipe"
    if difference == 0:
        return "bit-equal: every pixel is the same"
    return f"not bit-equal: pixels differ by up to {difference} of 255 levels"


def _size(image: "Image.Image") -> str:
    return f"{image.width}x{image.height}"
