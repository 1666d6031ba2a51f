"""Describe a model on disk or a generated image; nothing is downloaded, and no weights are loaded."""

from dataclasses import asdict
from typing import Any

from ssd1b.actions.rerun import is_known, reproduction_command
from ssd1b.errors import InputError
from ssd1b.images import read_recipe
from ssd1b.model import Model
from ssd1b.recipe import Recipe
from ssd1b.settings import resolve_settings


def describe_image(path: str) -> dict[str, Any]:
    """Return the recipe in an image, or another program's parameters, and the command to generate it again.

    Raises:
        InputError: the file cannot be read, or holds no settings.
    """
    recipe = read_recipe(path)
    facts = {"path": path, "command": reproduction_command(path, recipe)}
    if not isinstance(recipe, Recipe):
        return facts | {"parameters": asdict(recipe), "not_reproduced": recipe.unreproduced()}
    return facts | {"recipe": asdict(recipe), "model_is_known": is_known(recipe.model)}


def describe_model(name: str) -> dict[str, Any]:
    """Return a model's layout, parameter counts, scheduler, default settings and notes.

    Raises:
        InputError: there is no such model on disk, or its files are damaged.
    """
    found = Model.find(name, offline=True)
    checkpoint = found.checkpoint
    settings, problems = _default_settings(found)
    return {
        "model": found.name,
        "path": str(checkpoint.path),
        "commit": found.commit,
        "format": checkpoint.format,
        "layout": checkpoint.name,
        "family": checkpoint.family,
        "size": checkpoint.size,
        "transformer_blocks": checkpoint.unet and checkpoint.unet.transformer_blocks,
        "parts": {
            part: {
                "parameters": each.parameters,
                "bytes": each.size_in_bytes,
                "dtypes": [str(dtype).removeprefix("torch.") for dtype in each.dtypes],
                "layout": asdict(each.layout),
            }
            for part, each in checkpoint.parts.items()
        },
        "scheduler": checkpoint.scheduler,
        "prediction": checkpoint.prediction,
        "settings": settings,
        "notes": [*checkpoint.notes, *problems],
    }


def _default_settings(model: Model) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the model's default settings, or None and what is wrong with the model."""
    try:
        info, _ = model.info, model.tokenizers
        defaults = {"seed": 0, **info.defaults}
        settings = resolve_settings("any", family=info.family, model_defaults=defaults, preset=None)
    except InputError as error:
        return None, [str(error)]
    return {name: value for name, value in asdict(settings).items() if name not in ("prompt", "seed")}, []
