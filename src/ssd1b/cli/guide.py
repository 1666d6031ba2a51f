"""``ssd1b guide``: what the article says of settings, measured on a model."""

from pathlib import Path
from typing import Annotated, Any

import click

from ssd1b.cli.command import Command
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    model_options,
    prompt_options,
    setting_options,
)
from ssd1b.cli.paths import OUT_FOLDER, check_outputs, overwrite_option
from ssd1b.errors import InputError, unknown
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.validation import Range, check

PAIRS = Annotated[int, Range(8, 100_000)]


@click.command("guide", cls=Command, needs=("scipy", "matplotlib", "jinja2"))
@prompt_options
@click.option(
    "--pairs",
    type=int,
    default=64,
    show_default=True,
    help="Of prompt and seed, for each value of a setting.",
)
@click.option("--only", multiple=True, metavar="NAME", help="guidance, steps, negative, faults, sampler.")
@setting_options
@model_options
@click.option(
    "--out",
    type=OUT_FOLDER,
    metavar="FOLDER",
    required=True,
    help="Where the pages go; pictures go to its cells/.",
)
@overwrite_option
def command(
    prompts: list[str],
    pairs: int,
    only: tuple[str, ...],
    overrides: dict[str, Any],
    choice: ModelChoice,
    out: str,
    overwrite: bool,
) -> None:
    """Do the guide to SSD-1B's settings again on a model, claim by claim.

    Guidance from 1 to 25, steps from 5 to 60, each named negative prompt, each scheduler: every value draws
    the same prompts from the same noise, and each of the article's claims is confirmed, contradicted or not
    decidable on this model, with the figures. Without prompts the miniatures draw captions that no training
    saw, and a judge counts what is right; of other models CLIP score and PickScore are measured, if their
    networks are in the hub's cache. What was drawn is not drawn again.

    \b
    Examples:
      ssd1b guide --out guide
      ssd1b guide --model ssd-1b --file prompts.txt --out guide
      ssd1b guide "a lighthouse" --model mine.safetensors --only guidance --only steps --out guide
    """  # noqa: D301 (\b keeps click from wrapping)
    pairs = check("pairs", pairs, PAIRS)
    check_settings(prompts or ["a sphere"], overrides)
    if "seed" in overrides:
        raise InputError("seed is no setting of a guide: pairs have seeds of their own")

    from ssd1b.lab.guide import EXPERIMENTS

    names = [each.name for each in EXPERIMENTS]
    if wrong := [name for name in only if name not in names]:
        raise unknown("experiment", wrong[0], names)
    _guide(prompts, pairs, only or tuple(names), overrides, choice, Path(out), overwrite=overwrite)


def _guide(
    prompts: list[str],
    pairs: int,
    only: tuple[str, ...],
    overrides: dict[str, Any],
    choice: ModelChoice,
    out: Path,
    *,
    overwrite: bool,
) -> None:
    from ssd1b.cli import drawing
    from ssd1b.lab.guide import EXPERIMENTS, STREAM, Chapter, files_of, own_settings, sweep_of, write_guide
    from ssd1b.lab.metrics import captions, draws_tabletop
    from ssd1b.lab.results import load_results
    from ssd1b.lab.sweep import cells, definition, draw, identity

    check_outputs(out, files_of(only), overwrite=overwrite)
    name = choice.model or DEFAULT_MODEL
    with drawing.workplace(choice, out / "cells") as place:
        store, model = place.store, place.known(name)
        own = own_settings(model, overrides)
        judged = draws_tabletop(model.path)
        told = prompts or captions(model.path, pairs, stream=STREAM)
        chosen = [each for each in EXPERIMENTS if each.name in only]
        wanted = {
            each.name: sweep_of(each, told, pairs, model=name, own=own, beneath=overrides)
            for each in chosen
            if judged or not each.faults
        }
        drawn = {
            key: list(cells(sweep, place.known, device=place.device, dtype=place.dtype))
            for key, sweep in wanted.items()
        }
        identities = {key: identity(wanted[key], each) for key, each in drawn.items()}
        for key, each in drawn.items():
            store.record(identities[key], definition(wanted[key]), [(cell.key, cell.places) for cell in each])
        everything = [cell for each in drawn.values() for cell in each]

        left = {cell.key for cell in everything} - store.outcomes(cell.key for cell in everything).keys()
        with drawing.cells_bar(everything, left) as advance:
            draw(everything, store, place.prepare, advance=advance)
        chapters = [
            Chapter(each, load_results(store, identities[each.name]) if each.name in identities else None)
            for each in chosen
        ]
        paths = write_guide(out, chapters, store, model=name, own=own, overwrite=overwrite)
    for chapter in chapters:
        for claim, finding in chapter.findings(own):
            click.echo(f"{finding.word}: {claim.name} ({finding.told})")
    for path in paths:
        click.echo(click.format_filename(path))
