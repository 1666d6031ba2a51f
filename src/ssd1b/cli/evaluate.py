"""``ssd1b evaluate``: how good a model's images are, with confidence intervals."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from ssd1b.cli.command import Command
from ssd1b.cli.messages import warn
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    cluster_options,
    execution_options,
    model_options,
    preset_option,
    setting_options,
    speed_option,
)
from ssd1b.cli.paths import PATH, check_outputs, out_option, overwrite_option
from ssd1b.cli.table import columns, percent
from ssd1b.errors import InputError
from ssd1b.settings import Preset
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from ssd1b.evaluate.folder import FolderEvaluation
    from ssd1b.evaluate.statistics import Estimate
    from ssd1b.tabletop.judge.evaluation import Evaluation

TABLETOP_CAPTIONS = 500
CAPTIONS = Annotated[int, Range(2, 100_000, multiple_of=2)]
SEEDS = Annotated[int, Range(1, 1000)]
FIXED = ("seed", "width", "height")

FEW = 30
"""Captions below which a bootstrap underestimates the uncertainty: two right ones give "100 to 100"."""


@click.command("evaluate", cls=Command, needs=("scipy",))
@click.option(
    "--captions", type=int,
    help=f"Number of captions. Tabletop: {TABLETOP_CAPTIONS}, half of them with new combinations. With "
    "--data: all.",
)  # fmt: skip
@click.option("--seeds", type=int, default=1, show_default=True, help="Images per caption.")
@click.option(
    "--data", type=PATH, metavar="FOLDER", help="Images with captions in .txt files, instead of Tabletop."
)
@click.option("--versus", metavar="MODEL", help="Evaluate a second model, and compare the two in pairs.")
@setting_options
@preset_option
@model_options
@cluster_options
@execution_options
@speed_option
@click.option("--judge", type=PATH, metavar="FILE", help="Weights of a judge other than the built-in one.")
@out_option("Where to write figures and a contact sheet.")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    captions: int | None,
    seeds: int,
    data: str | None,
    versus: str | None,
    overrides: dict[str, Any],
    preset: Preset | None,
    choice: ModelChoice,
    judge: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Generate a fixed set of held-out captions, and count what the images show correctly.

    The judge, a network trained on renders alone, reads from each Tabletop image what stands where. Shares
    are in percent, with 95 % bootstrap intervals.

    Other models generate the captions of a folder (--data), with seeds from 0: CLIP score and PickScore, FID
    and KID against the folder's images, as far as their networks are cached or can be downloaded.

    \b
    Examples:
      ssd1b evaluate
      ssd1b evaluate --captions 100 --guidance 7 --negative "blurry, noisy"
      ssd1b evaluate --model runs/mini/model --versus mini-sdxl --out runs/mini/evaluation
      ssd1b evaluate --model ssd-1b --versus sdxl --data photos --out photos-evaluation
    """  # noqa: D301 (\b keeps click from wrapping)
    captions = _check(captions, seeds, data, judge, overrides)
    check_settings(["a sphere"], overrides, preset)
    models = [choice.name, *([versus] if versus is not None else [])]
    sheets = [f"sheet-{number}.png" for number in range(len(models))]
    check_outputs(out, ["evaluation.json", *sheets], overwrite=overwrite)

    from ssd1b.actions.evaluate import evaluate_folder, evaluate_tabletop, write_evaluations

    given: dict[str, Any] = {"seeds": seeds, "preset": preset, **overrides}
    if data is None:
        judge_file = None if judge is None else Path(judge)
        result = evaluate_tabletop(
            models, choice.loading(), captions=captions or TABLETOP_CAPTIONS, judge=judge_file, **given
        )
        texts, written = [_tabletop_text(each) for each in result.evaluations], percent
    else:
        result = evaluate_folder(Path(data), models, choice.loading(), captions=captions, **given)
        texts, written = [_folder_text(each) for each in result.evaluations], _plain
    if out is not None:
        write_evaluations(Path(out), result, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(result.facts()))
        return
    if len(result.captions) // seeds < FEW:
        warn(f"intervals of fewer than {FEW} captions are too narrow")
    for model, text in zip(models, texts, strict=True):
        click.echo(f"{model}\n{text}\n")
    if result.difference:
        click.echo(_difference(models, result.difference, written))


def _check(
    captions: int | None, seeds: int, data: str | None, judge: str | None, overrides: Mapping[str, Any]
) -> int | None:
    """Check the arguments, and return the number of captions."""
    check("seeds", seeds, SEEDS)
    if fixed := [name for name in FIXED if name in overrides and (data is None or name == "seed")]:
        raise InputError(f"{fixed[0]} is fixed here: seeds count from 0, and Tabletop images are 128x128")
    if data is None:
        return check("captions", TABLETOP_CAPTIONS if captions is None else captions, CAPTIONS)
    if judge is not None:
        raise InputError("--judge reads Tabletop images only: leave it out with --data")
    return None if captions is None else check("captions", captions, SEEDS)


def _tabletop_text(result: "Evaluation") -> str:
    table = result.table()
    names = list(next(iter(table.values())))
    rows = [["", *table], *([name, *(percent(group[name]) for group in table.values())] for name in names)]
    return "\n".join(
        [
            columns(rows),
            f"distance to renders: Fréchet {result.frechet:.3f} (between sets of renders "
            f"{result.frechet_renders:.3f}), kernel {result.kernel:.4f} ({result.kernel_renders:.4f})",
            f"autoencoder: {result.psnr.mean:.1f} dB ({result.psnr.low:.1f} to {result.psnr.high:.1f})",
            _cost(result),
        ]
    )


def _folder_text(result: "FolderEvaluation") -> str:
    rows = [[name, _plain(each)] for name, each in result.estimates().items()]
    rows += [[name, f"{value:.3f}"] for name, value in result.distances.items()]
    rows += [[name, f"not measured: {reason}"] for name, reason in result.missing.items()]
    return f"{columns(rows)}\n{_cost(result)}"


def _cost(result: "Evaluation | FolderEvaluation") -> str:
    return f"per image: {result.seconds:.2f} s, {result.macs / 1e9:.1f} GMACs in the UNet"


def _plain(value: "Estimate") -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


def _difference(
    models: list[str], compared: "Mapping[str, Estimate]", written: "Callable[[Estimate], str]"
) -> str:
    rows = [["", f"{models[1]} minus {models[0]}", ""]]
    for name, each in compared.items():
        verdict = "not statistically distinguishable from zero" if each.low <= 0 <= each.high else ""
        rows.append([name, written(each), verdict])
    return columns(rows)
