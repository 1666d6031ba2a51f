"""``ssd1b rerun``: a picture again, and whether it is the same."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ssd1b.cli.again import choose
from ssd1b.cli.command import Command
from ssd1b.cli.options import ModelChoice, check_settings, execution_options, model_options, out_option
from ssd1b.cli.paths import PATH, echo_path
from ssd1b.errors import InputError, line
from ssd1b.execution import DEFAULT
from ssd1b.files import named, open_regular
from ssd1b.recipe import Recipe
from ssd1b.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from PIL import Image

CIRCUMSTANCES = ("device", "dtype", "threads", "computing", "batch_size", "torch_version", "ssd1b_version")
"""What of a recipe, beside settings and model, can change the last bits of a picture."""


@click.command("rerun", cls=Command)
@click.argument("image", type=PATH, metavar="PICTURE")
@out_option
@model_options
@execution_options
@click.option(
    "--trust-recipe", "trusted", is_flag=True,
    help="Use the model that the picture names, whatever it is: a path is opened, a repository downloaded "
    "without your token.",
)  # fmt: skip
def command(image: str, out: str, choice: ModelChoice, trusted: bool) -> None:
    """Draw a picture again, from the recipe inside it, and tell whether every pixel is the same.

    Model, device and number format are the recipe's where nothing else is said. On the same machine the
    picture comes out bit-equal; other versions, devices or numbers of threads may round differently.

    Models that are built in, published under a short name or in the cache are used without asking; for any
    other, say --model or --trust-recipe, since anybody may have written the recipe.

    \b
    Examples:
      ssd1b rerun pictures/7-an-astronaut-riding-a-horse.png
      ssd1b rerun pictures/7-a-fox.png --trust-recipe
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.cli import drawing
    from ssd1b.images import check_destination, read_recipe

    check_destination(out)
    recipe = read_recipe(image)
    if isinstance(recipe, Recipe):
        choice = choose(choice, recipe.model, trusted=trusted)
    original = _exact_pixels(image)
    if isinstance(recipe, Recipe):
        choice = replace(
            choice,
            device=choice.device or _available(recipe.device),
            dtype=choice.dtype or recipe.dtype,
            prediction=choice.prediction or recipe.model.prediction,
            threads=choice.threads or _available_threads(recipe.threads),
            execution=recipe.computing if choice.execution == DEFAULT else choice.execution,
        )
        pipeline = drawing.load(choice)
        settings = recipe.settings
    else:
        overrides = recipe.settings()
        check_settings([recipe.prompt], overrides)
        click.echo(
            f"warning: no recipe in it, only {recipe.program}'s text, which does not say everything: "
            f"drawn with {choice.model or DEFAULT_MODEL}, expect another picture",
            err=True,
        )
        if left_out := recipe.unreproduced():
            click.echo(line(f"warning: not reproduced: {', '.join(left_out)}"), err=True)
        pipeline = drawing.load(choice)
        settings = pipeline.settings(recipe.prompt, **overrides)
    check_destination(out, recipe=pipeline.recipe(settings))
    with drawing.watched(pipeline, settings.steps) as watch:
        (picture,) = pipeline.draw([settings], watch)
    echo_path(drawing.save(picture, out, None))
    if isinstance(recipe, Recipe):
        click.echo(_verdict(original, picture.image), err=True)
        if changes := _changes(recipe, picture.recipe):
            click.echo(line(f"drawn under other circumstances: {', '.join(changes)}"), err=True)


def _exact_pixels(path: str) -> "Image.Image | None":
    """The pixels of a picture as they were drawn; None for JPEG and WebP, which keep them roughly.

    Raises:
        InputError: the file is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        return None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # Pillow has many words for damage
        raise InputError(f"{named(path)}: its pixels are damaged: {error}") from None


def _available(device: str) -> str | None:
    """A recipe's kind of device where this machine has it, else None."""
    from ssd1b.runtime import choose_device

    try:
        choose_device(device)
    except InputError:
        return None
    return device


def _available_threads(threads: int) -> int | None:
    """A recipe's number of threads where this machine has as many and the user set none, else None."""
    return threads if threads <= (os.cpu_count() or 1) and "OMP_NUM_THREADS" not in os.environ else None


def _verdict(original: "Image.Image | None", image: "Image.Image") -> str:
    from PIL import ImageChops

    if original is None:
        return "only PNG keeps pixels exactly: whether this one is bit-equal cannot be told"
    if original.size != image.size:
        return f"not bit-equal: {_size(original)} in the file, {_size(image)} by its recipe"
    furthest = max(ImageChops.difference(original, image).tobytes())
    if furthest == 0:
        return "bit-equal: every pixel is the same"
    return f"not bit-equal: pixels differ by up to {furthest} of 255 levels"


def _size(image: "Image.Image") -> str:
    return f"{image.width}x{image.height}"


def _changes(old: Recipe, new: Recipe) -> list[str]:
    """What is not as it was when the picture was drawn."""
    pairs: list[tuple[str, Any, Any]]
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in CIRCUMSTANCES]
    pairs += [
        (f"model {name}", getattr(old.model, name), getattr(new.model, name))
        for name in ("source", "revision", "layout")
    ]
    return [f"{name.replace('_', ' ')} {was}, now {now}" for name, was, now in pairs if was != now]
