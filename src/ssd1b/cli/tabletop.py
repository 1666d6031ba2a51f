"""``ssd1b tabletop``: the miniature's world rendered, and the miniature trained on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import click

from ssd1b.cli.app import Group
from ssd1b.cli.options import ModelChoice
from ssd1b.cli.paths import OUT_FOLDER, PATH, check_outputs, echo_path, overwrite_option
from ssd1b.cli.table import columns, percent
from ssd1b.errors import InputError, shown
from ssd1b.files import expand_path
from ssd1b.saving import check_free
from ssd1b.settings import Seed
from ssd1b.validation import Range, check

COUNT = Annotated[int, Range(1, 1_000_000)]
SHEET_COUNT = Annotated[int, Range(1, 400)]
Split: TypeAlias = Literal["train", "held_out"]


@click.group("tabletop", cls=Group)
def command() -> None:
    """Render the miniature's world, lit solids on a table, and train the miniature on it."""


def world_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument ``world``."""
    return click.option(
        "--world",
        type=click.Choice(["plain", "rich"]),
        default="plain",
        show_default=True,
        help="rich: also three solids, stacked ones, patterns and lighting.",
    )(command)


def world_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the arguments ``seed``, ``split`` and ``world``: which pictures."""
    command = world_option(command)
    command = click.option(
        "--split",
        type=click.Choice(["train", "held_out"]),
        default="train",
        show_default=True,
        help="held_out: each picture shows a combination that the training never does.",
    )(command)
    return click.option(
        "--seed", type=int, default=0, show_default=True, help="Of the world; trainings use 0 to 3."
    )(command)


@command.command("render")
@click.option("--count", type=int, default=16, show_default=True, help="How many pictures.")
@world_options
@click.option(
    "--out",
    type=OUT_FOLDER,
    metavar="FOLDER",
    required=True,
    help="Where they go, each with its caption in a .txt.",
)
@overwrite_option
def render_command(count: int, seed: int, split: Split, world: str, out: str, overwrite: bool) -> None:
    """Render pictures with exact captions, as training data.

    \b
    Example:
      ssd1b tabletop render --count 1000 --out data --split held_out
    """  # noqa: D301 (\b keeps click from wrapping)
    check("count", count, COUNT)
    check("seed", seed, Seed)

    from PIL import Image
    from tqdm import tqdm

    from ssd1b.saving import writing
    from ssd1b.tabletop.world.captions import full_caption
    from ssd1b.tabletop.world.renderer import render
    from ssd1b.tabletop.world.scenes import WORLDS, scene

    for index in tqdm(range(count), unit="picture", disable=None, leave=False):
        each = scene(seed, index, split=split, world=WORLDS[world])
        stem = f"{split}-{seed}-{index:06d}"
        with writing(Path(out, f"{stem}.png"), overwrite=overwrite) as aside:
            Image.fromarray(render(each)).save(aside, "PNG")
        with writing(Path(out, f"{stem}.txt"), overwrite=overwrite) as aside:
            aside.write_text(full_caption(each) + "\n", encoding="utf-8")
    echo_path(out)


@command.command("show")
@click.option("--count", type=int, default=16, show_default=True, help="How many scenes.")
@world_options
@click.option(
    "--model",
    metavar="MODEL",
    help="Beside each render show what the model's autoencoder makes of it, and what the model draws.",
)
@click.option(
    "--out", type=PATH, metavar="FILE", default="tabletop.png", show_default=True, help="The sheet, a PNG."
)
@overwrite_option
def show_command(
    count: int, seed: int, split: Split, world: str, model: str | None, out: str, overwrite: bool
) -> None:
    """Draw a sheet of scenes with their captions: what the world looks like, and what a model makes of it.

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

    from tqdm import tqdm

    from ssd1b.evaluate.sheets import contact_sheet
    from ssd1b.saving import writing
    from ssd1b.tabletop.world.captions import full_caption
    from ssd1b.tabletop.world.renderer import render
    from ssd1b.tabletop.world.scenes import WORLDS, scene

    scenes = [scene(seed, index, split=split, world=WORLDS[world]) for index in range(count)]
    if model is None:
        pictures = [render(each) for each in tqdm(scenes, unit="picture", disable=None, leave=False)]
        sheet = contact_sheet(pictures, [full_caption(each) for each in scenes])
    else:
        from ssd1b.cli import drawing
        from ssd1b.tabletop.world.gallery import side_by_side

        sheet = side_by_side(
            drawing.load(ModelChoice(model=model, device=None, dtype=None, offline=True)), scenes
        )
    with writing(Path(out), overwrite=overwrite) as aside:
        sheet.save(aside, "PNG")
    echo_path(out)


@command.command("examine", needs=("scipy", "matplotlib"))
@click.option("--count", type=int, default=1000, show_default=True, help="How many pictures.")
@click.option("--through", metavar="MODEL", help="Look also through the autoencoder of a model.")
@click.option(
    "--judge", type=PATH, metavar="FILE", help="Weights of a judge other than the one that comes along."
)
@click.option("--out", type=OUT_FOLDER, metavar="FOLDER", help="Where figures and plots go.")
@overwrite_option
def examine_command(
    count: int, through: str | None, judge: str | None, out: str | None, overwrite: bool
) -> None:
    """Tell how far the judge can be trusted, on fresh renders.

    The judge reads pictures whose scenes are known: which answers are right, what is taken for what, and
    whether it knows how sure it may be. A quarter of the pictures are spoiled, which may hide what is asked,
    so it reads as many of which none is.

    \b
    Example:
      ssd1b tabletop examine --through mini-sdxl --out docs/judge
    """  # noqa: D301 (\b keeps click from wrapping)
    check("count", count, COUNT)

    from ssd1b.cli import drawing
    from ssd1b.saving import renewing
    from ssd1b.tabletop.judge import examination, plots
    from ssd1b.tabletop.judge.judge import load_judge
    from ssd1b.tabletop.world.renderer import render_batch
    from ssd1b.weights.files import write_json

    reader = load_judge(Path(judge) if judge is not None else None)
    written = ["examination.json", "calibration.png", "confusion-0.png"]
    written += [] if through is None else ["confusion-1.png"]
    check_outputs(out, written, overwrite=overwrite)
    views: dict[str, examination.Renderer] = {"renders": render_batch}
    if through is not None:
        pipeline = drawing.load(ModelChoice(model=through, device=None, dtype=None, offline=True))
        views[f"through {through}"] = examination.through_vae(pipeline.vae)
    worlds = {"": examination.PLAIN, ", none spoiled": examination.CLEAN_WORLD}
    found = {
        name + which: examination.examine(reader, count, view, world=world, label=name + which)
        for name, view in views.items()
        for which, world in worlds.items()
    }
    accuracy = {name: each.accuracy() for name, each in found.items()}
    rows = [
        [question, *(percent(each[question]) for each in accuracy.values())]
        for question in accuracy["renders"]
    ]
    click.echo(columns([["", *found], *rows]))
    if out is None:
        return
    folder = Path(out)
    with renewing(folder / "examination.json", overwrite=overwrite) as aside:
        write_json(
            aside, {view: {q: e._asdict() for q, e in each.items()} for view, each in accuracy.items()}
        )
    spoiled_too = {name: found[name] for name in views}
    pictures = {"calibration": plots.calibration_plot(spoiled_too)}
    pictures |= {f"confusion-{n}": plots.confusion_plot(each) for n, each in enumerate(spoiled_too.values())}
    for name, png in pictures.items():
        with renewing(folder / f"{name}.png", overwrite=overwrite) as aside:
            aside.write_bytes(png)
    echo_path(out)


@command.command("train", needs=("accelerate",))
@click.argument("part", type=click.Choice(["vae", "clip", "unet", "image-encoder", "judge"]))
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
    help="Go on with the weights of a model, as mini-sdxl; for the judge, of a judge's file.",
)
@click.option("--steps", type=int, help="Of the optimiser. Default: the part's own number.")
@click.option("--batch-size", type=int, help="Pictures a step. Default: the part's own number.")
@click.option("--seed", type=int, help="Of pictures, captions and noise. Default: the part's own.")
@world_option
@click.option("--resume", is_flag=True, help="Go on with a training that was stopped.")
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
    """Train a part of the miniature; vae and clip first, then unet, which completes the model in RUN/model.

    The text encoders learn on beside the unet; image-encoder then follows them, for the CLIP score.
    The judge, which reads what a picture shows, needs no other part; it sees renders also through the
    autoencoder of RUN or, if there is none, of mini-sdxl.
    Ctrl-C stops with a checkpoint; --resume goes on from it, bit by bit.

    \b
    Examples:
      ssd1b tabletop train vae --out runs/mini
      ssd1b tabletop train clip --out runs/mini
      ssd1b tabletop train unet --out runs/mini
      ssd1b tabletop train image-encoder --out runs/mini
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
    if start is not None:
        first = Path(expand_path(start)) if part == "judge" else hub.resolve(start, offline=True).path
    made = train_part(
        part, Path(run), start=first, steps=steps, batch_size=batch_size, seed=seed, world=world,
        resume=resume, device=place,
    )  # fmt: skip
    echo_path(made)
