"""What it takes to draw a picture again: its model's name and a command line."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ssd1b.cli import generate
from ssd1b.errors import InputError
from ssd1b.recipe import ModelIdentity, Parameters, Recipe
from ssd1b.sampler_names import AUTOMATIC

_OPTIONS = {parameter.name: parameter.opts[0] for parameter in generate.command.params}


def model_name(model: ModelIdentity) -> str:
    """What to call a recipe's model so that the same weights are found."""
    return model.source if model.revision is None else f"{model.source}@{model.revision}"


def command_line(path: str, recipe: Recipe | Parameters) -> str:
    """Write the command that draws a picture again: with all its settings where options can say them."""
    line = _from_recipe(recipe) if isinstance(recipe, Recipe) else _from_parameters(recipe)
    # What a terminal would not show as it is must not be copied from one.
    return line if line and line.isprintable() else shlex.join(["ssd1b", "rerun", path])


def _from_recipe(recipe: Recipe) -> str | None:
    settings = recipe.settings
    size = (settings.height, settings.width)
    if (settings.original_size, settings.crop_top_left, settings.target_size) != (size, (0, 0), size):
        return None  # there are no options for micro-conditioning
    said = {**asdict(settings), "schedule": settings.schedule or AUTOMATIC}
    place = {"model": model_name(recipe.model), "device": recipe.device, "dtype": recipe.dtype,
             "prediction": recipe.model.prediction}  # fmt: skip
    return _generate(settings.prompt, said | place)


def _from_parameters(parameters: Parameters) -> str | None:
    try:
        return _generate(parameters.prompt, parameters.settings())
    except InputError:  # a number that is none
        return None


def _generate(prompt: str, said: Mapping[str, Any]) -> str:
    words = ["ssd1b", "generate"]
    if "width" in said:
        words += ["--size", f"{said['width']}x{said['height']}"]
    for name, value in said.items():
        if name in _OPTIONS and value is not None:
            words += [_OPTIONS[name], *map(_word, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, *(["--"] if prompt.startswith("-") else []), prompt])


def _word(value: object) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
