"""``ssd1b inspect``: what is in a checkpoint or a picture; nothing is loaded and nothing downloaded."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ssd1b.cli.again import again, is_known
from ssd1b.cli.command import Command
from ssd1b.cli.table import byte_size, columns, json_line
from ssd1b.errors import InputError, line, printable
from ssd1b.recipe import Recipe
from ssd1b.settings import resolve_settings

if TYPE_CHECKING:
    from ssd1b.model import Model

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Names of files that may carry a recipe; all others are taken for models."""

_SCHEDULER = ("_class_name", "prediction_type", "timestep_spacing")
_DEFAULTS = ("sampler", "schedule", "steps", "guidance_scale", "guidance_rescale", "negative_prompt")
"""What people see of scheduler and settings; --json has everything."""


@click.command("inspect", cls=Command)
@click.argument("subject", metavar="FILE|FOLDER|MODEL")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(subject: str, as_json: bool) -> None:
    """Tell what a model is made of, or how a picture was drawn; nothing is downloaded.

    \b
    Examples:
      ssd1b inspect pictures/7-an-astronaut-riding-a-horse.png
      ssd1b inspect sd_xl_base_1.0.safetensors
      ssd1b inspect ssd-1b
    """  # noqa: D301 (\b keeps click from wrapping)
    is_picture = subject.lower().endswith(_PICTURES)
    look, as_text = (_picture, _picture_text) if is_picture else (_model, _model_text)
    facts = look(subject)
    click.echo(json_line(facts) if as_json else as_text(facts))


def _picture(path: str) -> dict[str, Any]:
    from ssd1b.images import read_recipe

    recipe = read_recipe(path)
    facts = {"path": path, "command": again(path, recipe)}
    if not isinstance(recipe, Recipe):
        return facts | {"parameters": asdict(recipe), "not_reproduced": recipe.unreproduced()}
    return facts | {"recipe": asdict(recipe), "model_is_known": is_known(recipe.model)}


def _picture_text(facts: dict[str, Any]) -> str:
    if "recipe" in facts:
        recipe = facts["recipe"]
        model = {f"model {name}": value for name, value in recipe["model"].items()}
        rows, note = recipe["settings"] | model | recipe, "draw it again:"
        if not facts["model_is_known"]:
            note = "draw it again with the --model of your choice, or the picture's own by --trust-recipe:"
    else:
        rows = facts["parameters"] | facts["parameters"]["values"]
        note = f"no recipe but {rows['program']}'s; with the --model of your choice draw it again:"
    listed = {name: value for name, value in rows.items() if not isinstance(value, dict)}
    if left_out := facts.get("not_reproduced"):
        note = line(f"not reproduced: {', '.join(left_out)}") + f"\n\n{note}"
    return f"{_listed(listed)}\n\n{note}\n{printable(facts['command'])}"


def _model(name: str) -> dict[str, Any]:
    from ssd1b.model import Model

    found = Model.find(name, offline=True)
    checkpoint = found.checkpoint
    settings, problem = _default_settings(found)
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
        "notes": [*checkpoint.notes, *problem],
    }


def _default_settings(model: "Model") -> tuple[dict[str, Any] | None, list[str]]:
    """The settings of a picture for which nothing was chosen, or what is wrong with the model."""
    try:
        info, _ = model.info, model.tokenizers
        defaults = {"seed": 0, **info.defaults}
        settings = resolve_settings("any", family=info.family, model_defaults=defaults, preset=None)
    except InputError as error:
        return None, [str(error)]
    return {name: value for name, value in asdict(settings).items() if name not in ("prompt", "seed")}, []


def _model_text(facts: dict[str, Any]) -> str:
    sections = [_listed(_headlines(facts)), _parts(facts["parts"])]
    if "unet" in facts["parts"]:
        sections.append(_levels(facts["parts"]["unet"]["layout"]))
    sections += [f"note: {printable(note)}" for note in facts["notes"]]
    return "\n\n".join(sections)


def _headlines(facts: dict[str, Any]) -> dict[str, Any]:
    rows = {name: facts[name] for name in ("model", "path", "commit", "format") if facts[name] is not None}
    if facts["transformer_blocks"] is not None:
        name, family = facts["layout"], facts["family"]
        blocks = "" if family in (None, name) else f", arranged as in {family}"
        rows["layout"] = f"{name}: {facts['transformer_blocks']} transformer blocks{blocks}"
    if facts["settings"] is not None:
        settings, scheduler = facts["settings"], facts["scheduler"]
        rows["trained for"] = f"{facts['size']}x{facts['size']}"
        rows["scheduler"] = ", ".join(str(scheduler[name]) for name in _SCHEDULER if name in scheduler)
        said = ", ".join(f"{source}: {word}" for source, word in facts["prediction"].items())
        rows["prediction"] = said or f"{scheduler.get('prediction_type', 'epsilon')}; the files do not say it"
        rows["defaults"] = ", ".join(f"{name} {settings[name]}" for name in _DEFAULTS if settings[name])
    return rows


def _parts(parts: dict[str, Any]) -> str:
    rows = [
        (name, part["parameters"], part["bytes"], ", ".join(part["dtypes"])) for name, part in parts.items()
    ]
    if len(rows) > 1:
        rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows), ""))
    cells = [(name, f"{parameters:,}", byte_size(size), dtypes) for name, parameters, size, dtypes in rows]
    return columns([("PART", "PARAMETERS", "SIZE", "DTYPE"), *cells], right=(1, 2))


def _levels(unet: dict[str, Any]) -> str:
    """Channels of each level of the UNet, and the transformer depth behind each of its resnets."""

    def row(name: str, channels: int, *depths: tuple[int, ...]) -> tuple[str, ...]:
        return name, str(channels), *(" ".join(map(str, each)) for each in depths)

    levels = unet["levels"]
    rows = [row(str(index), each["channels"], each["down"], each["up"]) for index, each in enumerate(levels)]
    if unet["mid"] is not None:
        rows.append(row("middle", levels[-1]["channels"], (unet["mid"],), ()))
    return columns([("UNET LEVEL", "CHANNELS", "DEPTHS DOWN", "DEPTHS UP"), *rows], right=(1,))


def _listed(rows: dict[str, Any]) -> str:
    shown = {name: "none" if value is None else str(value) for name, value in rows.items()}
    return columns([(name.replace("_", " "), value) for name, value in shown.items()])
