"""``ssd1b sweep``: every combination of the values of some settings."""

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from ssd1b.cli.command import AGAIN, TEXT, Command
from ssd1b.cli.messages import print_advice, report_failures
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    cluster_options,
    model_options,
    preset_option,
    prompt_options,
    setting_options,
)
from ssd1b.cli.paths import PATH, out_option
from ssd1b.errors import InputError, shown
from ssd1b.files import named
from ssd1b.settings import Preset
from ssd1b.table_files import read_table
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from ssd1b.jobs.driver import Plan
    from ssd1b.lab.axes import Axis

SEEDS = Annotated[int, Range(1, 1000)]


@click.command("sweep", cls=Command, continues=AGAIN)
@prompt_options
@click.option(
    "--axis",
    "axes",
    type=TEXT,
    multiple=True,
    metavar="NAME=VALUES",
    help="A setting and its values, see above; may be repeated.",
)
@click.option(
    "--axes",
    "axes_file",
    type=PATH,
    metavar="FILE",
    help="A .toml or .json file with a table [axes] of NAME = VALUES.",
)
@click.option("--seeds", type=int, metavar="N", help="Adds an axis of N seeds, starting at --seed.")
@setting_options
@preset_option
@model_options
@cluster_options
@out_option("Folder for the cells; several sweeps can share it.", required=True)
@click.option("--retry", is_flag=True, help="Generate failed cells again.")
@click.option("--dry-run", is_flag=True, help="Print the number of cells, and how many would be generated.")
def command(
    prompts: list[str],
    axes: tuple[str, ...],
    axes_file: str | None,
    seeds: int | None,
    overrides: dict[str, Any],
    preset: Preset | None,
    choice: ModelChoice,
    out: str,
    retry: bool,
    dry_run: bool,
) -> None:
    """Generate and measure prompts with every combination of settings, from the same noise for each seed.

    An axis is a setting named as its option (guidance, steps, size, negative-preset, preset), model, or words
    (the first value is searched in the prompt, and the others replace it). Values are separated by commas, or
    by || if they contain commas; numbers may be ranges: 1-10, 1-10 (+2), 1-10 [5], or 5, 10, .., 30.

    Cells that exist, from whichever sweep, are not generated again: the same command resumes a sweep, and
    several processes may share a folder. The exit code is 1 if images failed, in this run or an earlier one.

    \b
    Examples:
      ssd1b sweep "a large red metal sphere on a blue background" --axis "guidance=1-9 [5]" --out sweeps/a
      ssd1b sweep --file prompts.txt --axis steps=5,10,..,30 --axis "sampler=UniPC,Euler,DDPM" --out sweeps/b
      ssd1b sweep "a red cube" --axis "words=red,green,blue" --seeds 4 --out sweeps/c
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.lab.axes import parse_axis, settings_of

    found = [parse_axis(each) for each in axes]
    found += [] if axes_file is None else _read_axes(Path(axes_file))
    if seeds is not None:
        first = overrides.get("seed", 0)
        found.append(parse_axis(f"seed={first}-{first + check('seeds', seeds, SEEDS) - 1}"))
    check_settings(prompts, overrides, preset, settings_of(found))

    from ssd1b.actions.lab import Sweep, sweep
    from ssd1b.cli.display import progress

    what = Sweep(
        prompts=tuple(prompts), axes=tuple(found), model=choice.name, preset=preset, settings=overrides
    )
    done = sweep(
        what, Path(out), choice.loading(), retry=retry, dry_run=dry_run, begin=_report, advise=print_advice,
        progress=progress,
    )  # fmt: skip
    if dry_run:
        return
    click.echo(f"{done.images} images in {named(out)}")
    report_failures(done.failures, f"{done.images + done.failures.total()} images", "--retry tries again")


def _read_axes(path: Path) -> "list[Axis]":
    from ssd1b.lab.axes import make_axis, parse_axis

    table = read_table(path)
    if not isinstance(table, dict) or not isinstance(table.get("axes"), dict):
        raise InputError(f"{path} must hold a table [axes]")
    if other := [name for name in table if name != "axes"]:
        raise InputError(f"{path} holds {other[0]!r}: only a table [axes] is read")
    return [
        make_axis(name, [_written(name, each) for each in values])
        if isinstance(values, list)
        else parse_axis(f"{name}={_written(name, values)}")  # as on the command line
        for name, values in table["axes"].items()
    ]


def _written(name: str, value: object) -> str:
    """Write a value from a file as on the command line."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"axis {shown(name)} has the value {shown(value)}: it must be a string or a number")
    # Decimal, because an axis has no exponents: 1e-05 is written 0.00001.
    return value if isinstance(value, str) else f"{Decimal(str(value)):f}"


def _report(plan: "Plan") -> None:
    click.echo(f"{len(plan.jobs)} cells, {len(plan.jobs) - len(plan.left)} of them known", err=True)
    if plan.lost:
        click.echo(
            f"{plan.lost} were generated before, but their images are missing or were changed: they are "
            "generated again",
            err=True,
        )
