"""``ssd1b evaluate``: how good a model's pictures of Tabletop are, with the uncertainty."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd1b.cli.options import DEFAULT_MODEL, ModelChoice, check_settings, model_options, setting_options
from ssd1b.cli.table import columns, percent
from ssd1b.errors import InputError
from ssd1b.presets import PRESETS, load_preset
from ssd1b.settings import Range

if TYPE_CHECKING:
    from ssd1b.evaluate.statistics import Estimate
    from ssd1b.tabletop.evaluation import Evaluation

CAPTIONS = Range(low=2, high=100_000, multiple_of=2)
SEEDS = Range(low=1, high=1000, multiple_of=1)
FIXED = ("seed", "width", "height")


@click.command("evaluate")
@click.option(
    "--captions",
    type=int,
    default=500,
    show_default=True,
    help="How many; half of them show new combinations.",
)
@click.option("--seeds", type=int, default=1, show_default=True, help="Pictures of each caption.")
@click.option("--versus", metavar="MODEL", help="Draw the same with another model, and compare in pairs.")
@setting_options
@click.option("--preset", metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a .toml or .json file.")
@model_options
@click.option("--judge", metavar="FILE", help="Weights of a judge other than the one that comes along.")
@click.option("--out", metavar="FOLDER", help="Where the figures and a sheet of pictures go.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    captions: int,
    seeds: int,
    versus: str | None,
    given: dict[str, Any],
    preset: str | None,
    choice: ModelChoice,
    judge: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Draw a fixed set of captions that no training saw, and count what the pictures have right.

    A network that was trained on renders alone reads off each picture what stands where. Shares are in
    percent, with 95 % intervals by bootstrap.

    \b
    Examples:
      ssd1b evaluate
      ssd1b evaluate --captions 100 --guidance 7 --negative "blurry, noisy"
      ssd1b evaluate --model runs/mini/model --versus mini-sdxl --out runs/mini/evaluation
    """  # noqa: D301 (\b keeps click from wrapping)
    CAPTIONS.check("captions", captions)
    SEEDS.check("seeds", seeds)
    if fixed := [name for name in FIXED if name in given]:
        raise InputError(f"{fixed[0]} is fixed here: every caption is drawn at 128x128 with seeds from 0 on")
    chosen = None if preset is None else load_preset(preset)
    check_settings("a sphere", given, chosen)

    from dataclasses import replace

    from ssd1b.tabletop.evaluation import compare
    from ssd1b.tabletop.judge import load_judge

    reader = load_judge(Path(judge) if judge is not None else None)
    models = [choice.model or DEFAULT_MODEL, *([versus] if versus is not None else [])]
    results = [
        _evaluate(
            replace(choice, model=model), reader, captions=captions, seeds=seeds, preset=chosen, **given
        )
        for model in models
    ]
    named = [{"model": model, **each.facts()} for model, each in zip(models, results, strict=True)]
    compared = compare(*results) if versus is not None else {}
    facts = {"models": named, "difference": {name: each._asdict() for name, each in compared.items()}}
    if out is not None:
        _write(Path(out), facts, results)
    if as_json:
        click.echo(json.dumps(facts))
        return
    for model, each in zip(models, results, strict=True):
        click.echo(f"{model}\n{_text(each)}\n")
    if compared:
        click.echo(_difference(models, compared))


def _evaluate(choice: ModelChoice, judge: Any, **what: Any) -> "Evaluation":
    from ssd1b.cli import drawing
    from ssd1b.evaluate.clip_score import ClipScore
    from ssd1b.tabletop.evaluation import evaluate
    from ssd1b.tabletop.views import SIZE
    from ssd1b.weights import hub

    pipeline = drawing.load(choice)
    if pipeline.layout.size != SIZE:
        side = pipeline.layout.size
        raise InputError(
            f"{choice.model} draws {side}x{side}; judged are pictures of Tabletop, {SIZE}x{SIZE}"
        )
    clip = ClipScore.load(hub.resolve(choice.model or DEFAULT_MODEL, offline=True).path, pipeline.text)
    return evaluate(pipeline, judge, clip, **what)


def _write(folder: Path, facts: dict[str, Any], results: "list[Evaluation]") -> None:
    from ssd1b.tabletop.sheet import contact_sheet
    from ssd1b.weights.files import replacing, write_json

    with replacing(folder / "evaluation.json") as aside:
        write_json(aside, facts)
    for number, each in enumerate(results):
        with replacing(folder / f"sheet-{number}.png") as aside:
            few = slice(0, 64)
            captions = [case.caption for case in each.cases[few]]
            contact_sheet(list(each.pictures[few]), captions).save(aside, "PNG")


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


def _difference(models: list[str], compared: "dict[str, Estimate]") -> str:
    rows = [["", f"{models[1]} less {models[0]}", ""]]
    for name, each in compared.items():
        told = "not to be told from zero" if each.low <= 0 <= each.high else ""
        rows.append([name, percent(each), told])
    return columns(rows)
