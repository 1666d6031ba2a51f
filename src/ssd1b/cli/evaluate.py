"""``ssd1b evaluate``: how good a model's pictures of Tabletop are, with the uncertainty."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import click

from ssd1b.cli.command import Command
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    execution_options,
    model_options,
    setting_options,
    speed_option,
)
from ssd1b.cli.paths import OUT_FOLDER, PATH, check_outputs, overwrite_option
from ssd1b.cli.table import columns, percent
from ssd1b.errors import InputError
from ssd1b.presets import PRESETS, load_preset
from ssd1b.saving import renewing
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from ssd1b.evaluate.folder import FolderEvaluation
    from ssd1b.evaluate.statistics import Estimate
    from ssd1b.tabletop.judge.evaluation import Evaluation

CAPTIONS = Annotated[int, Range(2, 100_000, multiple_of=2)]
SEEDS = Annotated[int, Range(1, 1000)]
FIXED = ("seed", "width", "height")
_ON_SHEET = 64

FEW = 30
"""Captions below which a bootstrap underestimates the uncertainty: two right ones give "100 to 100"."""


@click.command("evaluate", cls=Command, needs=("scipy",))
@click.option(
    "--captions",
    type=int,
    help="How many. Of Tabletop: 500, half of them with new combinations. Of --data: all.",
)
@click.option("--seeds", type=int, default=1, show_default=True, help="Pictures of each caption.")
@click.option(
    "--data", type=PATH, metavar="FOLDER", help="Pictures with captions in .txt files, in place of Tabletop."
)
@click.option("--versus", metavar="MODEL", help="Draw the same with another model, and compare in pairs.")
@setting_options
@click.option("--preset", metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a .toml or .json file.")
@model_options
@execution_options
@speed_option
@click.option(
    "--judge", type=PATH, metavar="FILE", help="Weights of a judge other than the one that comes along."
)
@click.option(
    "--out", type=OUT_FOLDER, metavar="FOLDER", help="Where the figures and a sheet of pictures go."
)
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    captions: int | None,
    seeds: int,
    data: str | None,
    versus: str | None,
    overrides: dict[str, Any],
    preset: str | None,
    choice: ModelChoice,
    judge: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw a fixed set of captions that no training saw, and count what the pictures have right.

    A network that was trained on renders alone reads off each picture of Tabletop what stands where. Shares
    are in percent, with 95 % intervals by bootstrap.

    Other models draw the captions of a folder (--data), with the seeds from 0 on: CLIP score and PickScore,
    FID and KID from the folder's pictures, as far as their networks' weights are there or can be fetched.

    \b
    Examples:
      ssd1b evaluate
      ssd1b evaluate --captions 100 --guidance 7 --negative "blurry, noisy"
      ssd1b evaluate --model runs/mini/model --versus mini-sdxl --out runs/mini/evaluation
      ssd1b evaluate --model ssd-1b --versus sdxl --data photos --out photos-evaluation
    """  # noqa: D301 (\b keeps click from wrapping)
    check("seeds", seeds, SEEDS)
    # Seeds are the pictures' numbers; and Tabletop has one size.
    if fixed := [name for name in FIXED if name in overrides and (data is None or name == "seed")]:
        raise InputError(
            f"{fixed[0]} is fixed here: pictures are drawn with seeds from 0 on, Tabletop at 128x128"
        )
    chosen = None if preset is None else load_preset(preset)
    check_settings(["a sphere"], overrides, chosen)
    models = [choice.model or DEFAULT_MODEL, *([versus] if versus is not None else [])]
    choices = [replace(choice, model=model) for model in models]
    sheets = [f"sheet-{number}.png" for number in range(len(models))]
    check_outputs(out, ["evaluation.json", *sheets], overwrite=overwrite)
    if data is None:
        number = 500 if captions is None else captions
        check("captions", number, CAPTIONS)
        results, differences = _tabletop(
            choices, judge, captions=number, seeds=seeds, preset=chosen, **overrides
        )
    else:
        if judge is not None:
            raise InputError("--judge reads pictures of Tabletop only: leave it out beside --data")
        if captions is not None:
            check("captions", captions, SEEDS)
        results, differences = _folder(choices, Path(data), captions, seeds=seeds, preset=chosen, **overrides)

    facts = {
        "models": [{"model": model, **each.facts} for model, each in zip(models, results, strict=True)],
        "difference": {name: each._asdict() for name, each in differences.items()},
    }
    if out is not None:
        _write(Path(out), facts, results, overwrite=overwrite)
    if as_json:
        from ssd1b.weights.files import json_value

        click.echo(json.dumps(json_value(facts)))
        return
    if len(results[0].captions) < FEW:
        click.echo(f"warning: intervals of fewer than {FEW} captions are too narrow", err=True)
    for model, each in zip(models, results, strict=True):
        click.echo(f"{model}\n{each.text}\n")
    if differences:
        click.echo(_difference(models, differences, percent if data is None else _plain))


class _Result(NamedTuple):
    """One model's figures, for programs and for people, and pictures to look at with their captions."""

    facts: dict[str, Any]
    text: str
    pictures: "list[NDArray[np.uint8]]"
    captions: list[str]


def _tabletop(
    choices: list[ModelChoice], judge: str | None, **what: Any
) -> "tuple[list[_Result], Mapping[str, Estimate]]":
    from ssd1b.cli import drawing
    from ssd1b.evaluate.clip_score import ClipScore
    from ssd1b.tabletop.judge.evaluation import compare, evaluate
    from ssd1b.tabletop.judge.judge import load_judge
    from ssd1b.weights import hub

    reader = load_judge(Path(judge) if judge is not None else None)
    found = []
    for choice in choices:
        pipeline = drawing.load(choice)
        path = hub.resolve(choice.model or DEFAULT_MODEL, offline=True).path
        if pipeline.info.world != "tabletop":
            raise InputError(
                f'{choice.model} does not draw Tabletop, of which a judge reads pictures (no "world": '
                '"tabletop" in its ssd1b.json): give a folder of captioned pictures with --data'
            )
        clip = ClipScore.load(path, pipeline.text)
        found.append(evaluate(pipeline, reader, clip, **what))
    results = [
        _Result(each.facts(), _text(each), list(each.pictures), [case.caption for case in each.cases])
        for each in found
    ]
    return results, compare(*found) if len(found) == 2 else {}


def _folder(
    choices: list[ModelChoice], data: Path, captions: int | None, *, seeds: int, **settings: Any
) -> "tuple[list[_Result], Mapping[str, Estimate]]":
    from ssd1b.evaluate.folder import compare_folders, evaluate_folder, read_captions

    pairs = read_captions(data)[:captions]

    from ssd1b.cli import drawing

    found = [
        evaluate_folder(drawing.load(choice), pairs, seeds=seeds, offline=choice.offline, **settings)
        for choice in choices
    ]
    shown = [pair.caption for pair in pairs for _ in range(seeds)]
    results = [_Result(each.facts(), _folder_text(each), each.pictures, shown) for each in found]
    return results, compare_folders(*found) if len(found) == 2 else {}


def _write(folder: Path, facts: dict[str, Any], results: list[_Result], *, overwrite: bool) -> None:
    from ssd1b.evaluate.sheets import contact_sheet
    from ssd1b.weights.files import write_json

    with renewing(folder / "evaluation.json", overwrite=overwrite) as aside:
        write_json(aside, facts)
    for number, each in enumerate(results):
        with renewing(folder / f"sheet-{number}.png", overwrite=overwrite) as aside:
            contact_sheet(each.pictures[:_ON_SHEET], each.captions[:_ON_SHEET]).save(aside, "PNG")


def _text(result: "Evaluation") -> str:
    table = result.table()
    names = list(next(iter(table.values())))
    rows = [["", *table], *([name, *(percent(group[name]) for group in table.values())] for name in names)]
    facts = result.facts()
    return "\n".join(
        [
            columns(rows),
            f"distance to renders: Fréchet {result.frechet:.3f} (renders among themselves "
            f"{result.frechet_renders:.3f}), kernel {result.kernel:.4f} ({result.kernel_renders:.4f})",
            f"autoencoder: {result.psnr.mean:.1f} dB ({result.psnr.low:.1f} to {result.psnr.high:.1f})",
            f"a picture: {facts['seconds']:.2f} s, {facts['unet_gmacs']:.1f} GMACs in the UNet",
        ]
    )


def _folder_text(result: "FolderEvaluation") -> str:
    rows = [[name, _plain(each)] for name, each in result.estimates().items()]
    rows += [[name, f"{value:.3f}"] for name, value in result.distances.items()]
    rows += [[name, f"not measured: {reason}"] for name, reason in result.missing.items()]
    cost = f"a picture: {result.seconds:.2f} s, {result.macs / 1e9:.1f} GMACs in the UNet"
    return f"{columns(rows)}\n{cost}"


def _plain(value: "Estimate") -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


def _difference(
    models: list[str], compared: "Mapping[str, Estimate]", written: "Callable[[Estimate], str]"
) -> str:
    rows = [["", f"{models[1]} less {models[0]}", ""]]
    for name, each in compared.items():
        told = "not to be told from zero" if each.low <= 0 <= each.high else ""
        rows.append([name, written(each), told])
    return columns(rows)
