"""``ssd1b guide``: test the article's claims about settings on a model."""

from pathlib import Path
from typing import Annotated, Any

import click

from ssd1b.cli.command import AGAIN, Command
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    cluster_options,
    model_options,
    prompt_options,
    setting_options,
)
from ssd1b.cli.paths import check_outputs, echo_path, out_option, overwrite_option
from ssd1b.errors import InputError, unknown
from ssd1b.validation import Range, check

PAIRS = Annotated[int, Range(8, 100_000)]


@click.command("guide", cls=Command, needs=("scipy", "matplotlib", "jinja2"), continues=AGAIN)
@prompt_options
@click.option(
    "--pairs",
    type=int,
    default=64,
    show_default=True,
    help="Pairs of prompt and seed for each value of a setting.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Run only guidance, steps, negative, faults or sampler; may be repeated.",
)
@setting_options
@model_options
@cluster_options
@out_option("Folder for the pages; images go to its cells/.", required=True)
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
    """Repeat the guide to SSD-1B's settings on a model, claim by claim.

    Guidance from 1 to 25, steps from 5 to 60, each named negative prompt, each scheduler: every value
    generates the same prompts from the same noise. Each of the article's claims is confirmed, contradicted or
    not decidable on this model, with the figures. Without prompts the miniatures use held-out captions, and
    the judge counts what is right; for other models CLIP score and PickScore are measured, if their networks
    are in the hub's cache. Existing cells are not generated again.

    \b
    Examples:
      ssd1b guide --out guide
      ssd1b guide --model ssd-1b --file prompts.txt --out guide
      ssd1b guide "a lighthouse" --model mine.safetensors --only guidance --only steps --out guide
    """  # noqa: D301 (\b keeps click from wrapping)
    pairs = check("pairs", pairs, PAIRS)
    check_settings(prompts or ["a sphere"], overrides)
    if "seed" in overrides:
        raise InputError("seed is no setting of a guide: each pair has its own seed")

    from ssd1b.actions.lab import EXPERIMENTS, guide
    from ssd1b.cli.display import progress
    from ssd1b.lab.guide import files_of

    names = [each.name for each in EXPERIMENTS]
    if wrong := [name for name in only if name not in names]:
        raise unknown("experiment", wrong[0], names)
    check_outputs(out, files_of(only or names), overwrite=overwrite)
    result = guide(
        choice.name, Path(out), choice.loading(), prompts=prompts, pairs=pairs, only=only, base=overrides,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
    for claim, finding in result.findings:
        click.echo(f"{finding.verdict}: {claim.name} ({finding.summary})")
    for path in result.files:
        echo_path(path)
