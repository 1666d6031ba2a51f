"""What it takes to draw a picture again: its model's name and a command line."""

import shlex
from dataclasses import asdict, replace

from ssd1b.cli.options import ModelChoice
from ssd1b.command_line import command_line
from ssd1b.errors import InputError, printable
from ssd1b.recipe import ModelIdentity, Parameters, Recipe
from ssd1b.sampler_names import AUTOMATIC


def model_name(model: ModelIdentity) -> str:
    """What to call a recipe's model so that the same weights are found."""
    return model.source if model.revision is None else f"{model.source}@{model.revision}"


def is_known(model: ModelIdentity) -> bool:
    """Whether a recipe's model may be used without asking: a stranger may have written the recipe."""
    from ssd1b.weights import hub

    return hub.known_source(model_name(model)) is not None


def choose(choice: ModelChoice, model: ModelIdentity, *, trusted: bool) -> ModelChoice:
    """Choose the model that the user names, else the recipe's.

    The hub gets the user's token only for a model that the user names, however far the recipe is trusted.

    Args:
        choice: what the user said.
        model: what the recipe says.
        trusted: the user allows any model that the recipe names.

    Raises:
        InputError: the recipe's model may not be used without asking.
    """
    from ssd1b.weights import hub

    if choice.model is not None:
        return choice
    name = model_name(model)
    match hub.known_source(name):
        case "cached":
            return replace(choice, model=name, paths=False, offline=True)
        case None if not trusted:
            raise InputError(
                f"the picture names the model '{printable(name)}', which is not built in, published under a "
                "short name or in the cache: choose one with --model, or allow this one with --trust-recipe"
            )
        case None:
            return replace(choice, model=name, token=False)
        case _:
            return replace(choice, model=name, paths=False, token=False)


def again(path: str, recipe: Recipe | Parameters) -> str:
    """Write the command that draws a picture again: with all its settings where options can say them.

    A model that may not be used without asking is not written down, for whoever types a name has chosen it.
    """
    line = _from_recipe(recipe) if isinstance(recipe, Recipe) else _from_parameters(recipe)
    # What a terminal would not show as it is must not be copied from one.
    return line if line and line.isprintable() else shlex.join(["ssd1b", "rerun", path])


def _from_recipe(recipe: Recipe) -> str | None:
    settings = recipe.settings
    if not is_known(recipe.model):
        return None
    size = (settings.height, settings.width)
    if (settings.original_size, settings.crop_top_left, settings.target_size) != (size, (0, 0), size):
        return None  # there are no options for micro-conditioning
    return command_line(
        settings.prompt, {**asdict(settings), "schedule": settings.schedule or AUTOMATIC},
        model=model_name(recipe.model), device=recipe.device, dtype=recipe.dtype,
        prediction=recipe.model.prediction,
    )  # fmt: skip


def _from_parameters(parameters: Parameters) -> str | None:
    try:
        return command_line(parameters.prompt, parameters.settings())
    except InputError:  # a number that is none
        return None
