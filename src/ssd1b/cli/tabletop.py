"""``ssd1b tabletop``: the miniature's world rendered, and the miniature trained on it."""

from pathlib import Path
from typing import Literal

import click

from ssd1b.cli.app import Group
from ssd1b.errors import InputError
from ssd1b.settings import RANGES, Range, shown

COUNT = Range(low=1, high=1_000_000, multiple_of=1)
SHEET_COUNT = Range(low=1, high=400, multiple_of=1)


@click.group("tabletop", cls=Group)
def command() -> None:
    """Render the miniature's world, lit solids on a table, and train the miniature on it."""


@command.command("render")
@click.option("--count", type=int, default=16, show_default=True, help="How many pictures.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the world; the training uses 0.")
@click.option(
    "--split",
    type=click.Choice(["train", "held_out"]),
    default="train",
    show_default=True,
    help="held_out: each picture shows a combination that the training never does.",
)
@click.option("--out", metavar="FOLDER", help="Where pictures go, each with its caption in a .txt beside.")
@click.option("--sheet", metavar="FILE", help="One picture of all, with captions.")
def render_command(
    count: int, seed: int, split: Literal["train", "held_out"], out: str | None, sheet: str | None
) -> None:
    """Render pictures with exact captions: for a look (--sheet) or as training data (--out).

    \b
    Examples:
      ssd1b tabletop render --sheet tabletop.png
      ssd1b tabletop render --count 1000 --out data --split held_out
    """  # noqa: D301 (\b keeps click from wrapping)
    if out is None and sheet is None:
        raise InputError("nowhere to go: name a folder with --out, or a file with --sheet")
    if sheet is not None and Path(sheet).suffix.lower() != ".png":
        raise InputError(f"a sheet is a PNG, so its name must end in .png: {shown(sheet)}")
    (COUNT if sheet is None else SHEET_COUNT).check("count", count)
    RANGES["seed"].check("seed", seed)

    from PIL import Image
    from tqdm import tqdm

    from ssd1b.tabletop.captions import full_caption
    from ssd1b.tabletop.renderer import render
    from ssd1b.tabletop.scenes import scene
    from ssd1b.tabletop.sheet import contact_sheet
    from ssd1b.weights.files import replacing

    on_sheet = []
    for index in tqdm(range(count), unit="picture", disable=None, leave=False):
        each = scene(seed, index, split=split)
        picture, caption = render(each), full_caption(each)
        if sheet is not None:
            on_sheet.append((picture, caption))
        if out is not None:
            stem = f"{split}-{seed}-{index:06d}"
            with replacing(Path(out, f"{stem}.png")) as aside:
                Image.fromarray(picture).save(aside, "PNG")
            with replacing(Path(out, f"{stem}.txt")) as aside:
                aside.write_text(caption + "\n", encoding="utf-8")
    if sheet is not None:
        with replacing(Path(sheet)) as aside:
            contact_sheet(*zip(*on_sheet, strict=True)).save(aside, "PNG")
    for path in filter(None, (out, sheet)):
        click.echo(click.format_filename(path))


@command.command("train")
@click.argument("part", type=click.Choice(["vae", "clip", "unet", "judge"]))
@click.option(
    "--out", "run", metavar="RUN", required=True, help="Folder of the whole run, the same for all parts."
)
@click.option(
    "--from",
    "start",
    metavar="MODEL",
    help="Go on with the weights of a model, as mini-sdxl: vae or unet.",
)
@click.option("--steps", type=int, help="Of the optimiser. Default: the part's own number.")
@click.option("--resume", is_flag=True, help="Go on with a training that was stopped.")
@click.option("--device", help="cpu, cuda, mps. Default: cpu.")
def train_command(
    part: str, run: str, start: str | None, steps: int | None, resume: bool, device: str | None
) -> None:
    """Train a part of the miniature; vae and clip first, then unet, which completes the model in RUN/model.

    The judge, which reads what a picture shows, needs no other part.
    Ctrl-C stops with a checkpoint; --resume goes on from it, bit by bit.

    \b
    Examples:
      ssd1b tabletop train vae --out runs/mini
      ssd1b tabletop train clip --out runs/mini
      ssd1b tabletop train unet --out runs/mini
      ssd1b tabletop train unet --out runs/longer --from mini-sdxl --steps 10000
      ssd1b generate "a large red metal sphere" --model runs/mini/model
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.runtime import choose_device
    from ssd1b.tabletop.assemble import train_part
    from ssd1b.weights import hub

    place = str(choose_device(device or "cpu"))
    first = hub.resolve(start, offline=True).path if start is not None else None
    made = train_part(part, Path(run), start=first, steps=steps, resume=resume, device=place)
    click.echo(click.format_filename(made))
