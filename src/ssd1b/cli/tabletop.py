"""``ssd1b tabletop``: render the miniature's world, and train the miniature on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import click

from ssd1b.cli.app import Group
from ssd1b.cli.command import RESUME
from ssd1b.cli.messages import notify
from ssd1b.cli.options import ModelChoice
from ssd1b.cli.paths import OUT_FOLDER, PATH, check_outputs, echo_path, out_option, overwrite_option
from ssd1b.cli.table import columns, percent
from ssd1b.errors import InputError, shown
from ssd1b.files import expand_path
from ssd1b.saving import check_free, writing
from ssd1b.settings import Seed
from ssd1b.validation import Range, check

COUNT = Annotated[int, Range(1, 1_000_000)]
SHEET_COUNT = Annotated[int, Range(1, 400)]
Split: TypeAlias = Literal["train", "held_out"]

LOCAL = ModelChoice(offline=True)


@click.group("tabletop", cls=Group)
def command() -> None:
    """Render Tabletop, a world of lit solids on a table, and train the miniature on it."""


def world_option(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``world``."""
    return click.option(
        "--world",
        type=click.Choice(["plain", "rich"]),
        default="plain",
        show_default=True,
        help="rich: also three or stacked solids, patterns and lighting.",
    )(command)


def world_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``seed``, ``split`` and ``world``, which select scenes."""
    command = world_option(command)
    command = click.option(
        "--split",
        type=click.Choice(["train", "held_out"]),
        default="train",
        show_default=True,
        help="held_out: only combinations that no training image shows.",
    )(command)
    return click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of the scenes; trainings use 0 to 5."
    )(command)


@command.command("render")
@click.option("--count", type=int, default=16, show_default=True, help="Number of images.")
@world_options
@click.option(
    "--subject",
    metavar="NAME",
    help="octahedron or banded: a shape or a material that no training image shows, to fine-tune on.",
)
@out_option("Where to write images, each with its caption in a .txt file.", required=True)
@overwrite_option
def render_command(
    count: int, seed: int, split: Split, world: str, subject: str | None, out: str, overwrite: bool
) -> None:
    """Render images with exact captions, as training data.

    \b
    Examples:
      ssd1b tabletop render --count 1000 --out data --split held_out
      ssd1b tabletop render --count 12 --subject octahedron --out subject
    """  # noqa: D301 (\b keeps click from wrapping)
    check("count", count, COUNT)
    check("seed", seed, Seed)

    from ssd1b.actions.tabletop import render_dataset
    from ssd1b.cli.display import progress

    render_dataset(
        Path(out), count, seed=seed, split=split, world=world, subject=subject, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip
    echo_path(out)


@command.command("show")
@click.option("--count", type=int, default=16, show_default=True, help="Number of scenes.")
@world_options
@click.option(
    "--model",
    metavar="MODEL",
    help="Next to each render, show its reconstruction by the model's autoencoder and generated images.",
)
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    default="tabletop.png",
    show_default=True,
    help="PNG file of the sheet.",
)
@overwrite_option
def show_command(
    count: int, seed: int, split: Split, world: str, model: str | None, out: str, overwrite: bool
) -> None:
    """Render a sheet of scenes with their captions, optionally next to what a model generates from them.

    \b
    Examples:
      ssd1b tabletop show --count 36
      ssd1b tabletop show --count 8 --seed 5 --split held_out --model mini-sdxl --out drawn.png
    """  # noqa: D301 (\b keeps click from wrapping)
    check("count", count, SHEET_COUNT)
    check("seed", seed, Seed)
    if Path(out).suffix.lower() != ".png":
        raise InputError(f"a sheet is a PNG, so its name must end in .png: {shown(out)}")
    check_free(Path(out), overwrite=overwrite)

    from ssd1b.actions.tabletop import scene_sheet
    from ssd1b.cli.display import progress

    sheet = scene_sheet(
        count, seed=seed, split=split, world=world, model=model, loading=LOCAL.loading(), progress=progress
    )
    with writing(Path(out), overwrite=overwrite) as aside:
        sheet.save(aside, "PNG")
    echo_path(out)


@command.command("examine", needs=("scipy", "matplotlib"))
@click.option("--count", type=int, default=1000, show_default=True, help="Number of images.")
@click.option("--through", metavar="MODEL", help="Also read renders that went through a model's autoencoder.")
@click.option("--judge", type=PATH, metavar="FILE", help="Weights of a judge other than the built-in one.")
@out_option("Where to write figures and plots.")
@overwrite_option
def examine_command(
    count: int, through: str | None, judge: str | None, out: str | None, overwrite: bool
) -> None:
    """Measure the accuracy of the judge on fresh renders.

    The judge reads images of known scenes. Reported are accuracy, confusions and calibration. A quarter of
    the images are spoiled, which may hide the answer, so it also reads as many of which none is.

    \b
    Example:
      ssd1b tabletop examine --through mini-sdxl --out docs/judge
    """  # noqa: D301 (\b keeps click from wrapping)
    check("count", count, COUNT)

    from ssd1b.actions.tabletop import examine_judge, report_files, write_judge_report

    check_outputs(out, report_files(1 if through is None else 2), overwrite=overwrite)
    report = examine_judge(
        count, judge=None if judge is None else Path(judge), model=through, loading=LOCAL.loading()
    )
    accuracy = report.accuracy()
    rows = [
        [question, *(percent(each[question]) for each in accuracy.values())]
        for question in accuracy["renders"]
    ]
    click.echo(columns([["", *accuracy], *rows]))
    if out is not None:
        write_judge_report(Path(out), report, overwrite=overwrite)
        echo_path(out)


@command.command("train", needs=("accelerate",), continues=RESUME)
@click.argument("part", type=click.Choice(["vae", "clip", "unet", "image-encoder", "judge", "control"]))
@click.option(
    "--out",
    "run",
    type=OUT_FOLDER,
    metavar="RUN",
    required=True,
    help="Folder of the whole run, the same for all parts.",
)
@click.option(
    "--from",
    "start",
    metavar="MODEL",
    help="Start from the weights of a model, as mini-sdxl; for the judge, of a judge's file.",
)
@click.option("--steps", type=int, help="Optimiser steps. Default: depends on the part.")
@click.option("--batch-size", type=int, help="Images per step. Default: depends on the part.")
@click.option("--seed", type=int, help="Seed of images, captions and noise. Default: depends on the part.")
@world_option
@click.option("--resume", is_flag=True, help="Resume an interrupted training.")
@click.option("--device", help="cpu, cuda, mps. Default: cpu.")
def train_command(
    part: str,
    run: str,
    start: str | None,
    steps: int | None,
    batch_size: int | None,
    seed: int | None,
    world: str,
    resume: bool,
    device: str | None,
) -> None:
    """Train a part of the miniature: vae and clip first, then unet, which completes the model in RUN/model.

    The text encoders continue to learn with the unet; image-encoder then adapts to them, for the CLIP score.
    The judge, which reads what an image shows, needs no other part. It also sees renders that went through
    the autoencoder of RUN or, if there is none, of mini-sdxl. control is a ControlNet that reads edges, for
    the model of --from or mini-ssd-1b; it is written to RUN/controlnet. Ctrl-C stops with a checkpoint, from
    which --resume continues bit-exactly.

    \b
    Examples:
      ssd1b tabletop train vae --out runs/mini
      ssd1b tabletop train clip --out runs/mini
      ssd1b tabletop train unet --out runs/mini
      ssd1b tabletop train image-encoder --out runs/mini
      ssd1b tabletop train control --out runs/control
      ssd1b tabletop train unet --out runs/longer --from mini-sdxl --steps 10000
      ssd1b generate "a large red metal sphere" --model runs/mini/model
    """  # noqa: D301 (\b keeps click from wrapping)
    if seed is not None:
        check("seed", seed, Seed)

    from ssd1b.runtime import choose_device
    from ssd1b.tabletop.miniature.assemble import train_part
    from ssd1b.weights import hub

    place = str(choose_device(device or "cpu"))
    first = None
    if start in hub.LORAS:
        raise InputError(f"{start} is a LoRA of {hub.BUILT_IN[start].name}, which --from can take")
    if start is not None:
        first = Path(expand_path(start)) if part == "judge" else hub.resolve(start, offline=True).path
    made = train_part(
        part, Path(run), start=first, steps=steps, batch_size=batch_size, seed=seed, world=world,
        resume=resume, device=place, notify=notify,
    )  # fmt: skip
    echo_path(made)
