"""``ssd1b tune``: the best settings, found and proven."""

import time
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from ssd1b.cli.command import TEXT, Command
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    model_options,
    prompt_options,
    setting_options,
)
from ssd1b.cli.paths import OUT_FOLDER, check_outputs, overwrite_option
from ssd1b.cli.table import columns
from ssd1b.errors import InputError
from ssd1b.presets import PRESETS, load_preset
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssd1b.lab.axes import Axis
    from ssd1b.lab.goal import Goal
    from ssd1b.lab.tune import Candidate, Tuned
    from ssd1b.settings import Preset

TRIALS = Annotated[int, Range(1, 100_000)]
BUDGET = Annotated[float, Range(1, 1_000_000)]
MINUTES = Annotated[float, Range(0.01, 525_600)]
PAIRS = Annotated[int, Range(8, 100_000)]

USUAL_AXES = (
    "guidance=1-15 (+0.5)",
    "steps=6-30 (+2)",
    "sampler=UniPC,Euler,DDPM,DPM++ 2M,DDIM",
    "guidance-rescale=0,0.35,0.7",
)
"""What is searched if nothing else is named: the article's ranges, and what has become usual since."""


@click.command("tune", cls=Command, needs=("scipy", "optuna"))
@prompt_options
@click.option(
    "--axis", "axes", type=TEXT, multiple=True, metavar="NAME=VALUES", help="What is searched, as in sweep."
)
@click.option(
    "--metric", default="flawless", show_default=True, metavar="SUM", help="As clip, or right + 0.5*clip."
)
@click.option("--guard", "guards", multiple=True, metavar="BOUND", help="As clipping<=0.05, clean>=0.9.")
@click.option("--budget", type=float, metavar="PASSES", help="Of the UNet, that a picture may take.")
@click.option("--trials", type=int, default=60, show_default=True, help="Combinations to try, in all.")
@click.option("--minutes", type=float, help="Begin no further trial after so long.")
@click.option(
    "--pairs", type=int, default=48, show_default=True, help="Of prompt and seed, for each combination."
)
@click.option("--fresh", type=int, default=96, show_default=True, help="Pairs for the proof.")
@setting_options
@click.option("--preset", metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a .toml or .json file.")
@model_options
@click.option(
    "--out",
    type=OUT_FOLDER,
    metavar="FOLDER",
    required=True,
    help="Where cells, the search and the preset are kept.",
)
@overwrite_option
def command(
    prompts: list[str],
    axes: tuple[str, ...],
    metric: str,
    guards: tuple[str, ...],
    budget: float | None,
    trials: int,
    minutes: float | None,
    pairs: int,
    fresh: int,
    overrides: dict[str, Any],
    preset: str | None,
    choice: ModelChoice,
    out: str,
    overwrite: bool,
) -> None:
    """Search the best settings for a model and prompts, and prove them on pairs that the search did not see.

    Combinations are proposed by a model of what was seen (Optuna's TPE), draw the same pairs of prompt and
    seed, and are given up when they are clearly behind. The winner and its best rivals then draw fresh
    pairs: each rival is worse, or not to be told apart. One of them is the baseline: the model's own
    settings, with those that are given here. Without prompts the miniatures draw captions that no training
    saw. The same command goes on with a search that was stopped, and several may share a folder.

    \b
    Examples:
      ssd1b tune --out tuned
      ssd1b tune --budget 20 --guard "clipping<=0.05" --out tuned
      ssd1b tune --model ssd-1b --file prompts.txt --metric clip --axis guidance=3-15 --out mine
      ssd1b generate "a red cube" --preset tuned/preset.json
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.lab.axes import parse_axis
    from ssd1b.lab.goal import read_goal

    for name, allowed, value in (
        ("trials", TRIALS, trials), ("pairs", PAIRS, pairs), ("fresh", PAIRS, fresh),
        ("budget", BUDGET, budget), ("minutes", MINUTES, minutes),
    ):  # fmt: skip
        if value is not None:
            check(name, value, allowed)
    chosen = None if preset is None else load_preset(preset)
    check_settings(prompts or ["a sphere"], overrides, chosen)
    if "seed" in overrides:
        raise InputError("seed is no setting that could be tuned: pairs have seeds of their own")
    found = [parse_axis(each) for each in axes or USUAL_AXES]
    if twice := [axis.name for axis in found if [each.name for each in found].count(axis.name) > 1]:
        raise InputError(f"axis {twice[0]} is there twice: write all its values into one")
    if other := [axis.name for axis in found if axis.name in ("seed", "words", "model")]:
        raise InputError(f"axis {other[0]} is no setting that could be tuned")
    goal = read_goal(metric, guards)
    _tune(
        prompts, found, goal, Path(out), choice, chosen, overrides, budget=budget, trials=trials,
        minutes=minutes,
        pairs=pairs, fresh=fresh, overwrite=overwrite,
    )  # fmt: skip


def _tune(
    prompts: "list[str]", axes: "list[Axis]", goal: "Goal", out: Path, choice: ModelChoice,
    preset: "Preset | None", overrides: dict[str, Any], *, budget: float | None, trials: int,
    minutes: float | None, pairs: int, fresh: int, overwrite: bool,
) -> None:  # fmt: skip
    from tqdm import tqdm

    from ssd1b.cli import drawing
    from ssd1b.lab.tune import RIVALS, prove, search
    from ssd1b.lab.tuning import FILES, Looker, baseline, check_budget, opened_study, pairs_of, write_tuned

    check_outputs(out, FILES, overwrite=overwrite)
    name = choice.model or DEFAULT_MODEL
    with drawing.workplace(choice, out) as place, ExitStack() as stack:
        model = place.known(name)
        # Loaded when the first picture is to be drawn, and kept for all trials.
        prepare = cache(lambda name: stack.enter_context(place.prepare(name)))
        first, second = pairs_of(prompts, model, pairs, fresh)
        beneath = {**(preset.settings if preset else {}), **overrides}
        look = Looker(
            store=place.store, axes=axes, goal=goal, model=name, known=place.known, prepare=prepare,
            beneath=beneath, device=place.device, dtype=place.dtype,
        )  # fmt: skip
        if budget is not None:
            check_budget(look, budget, first[0])
        what = {"model": model.fingerprint, "pairs": first, "settings": beneath}
        study = partial(opened_study, out, axes, goal, what)
        until = None if minutes is None else time.monotonic() + 60 * minutes
        with tqdm(total=trials, desc="search", unit="trial", disable=None, leave=False) as bar:
            found = search(
                axes, goal, look, first, study=study, trials=trials, advance=bar.update,
                go_on=lambda: until is None or time.monotonic() < until,
            )  # fmt: skip
        with tqdm(total=RIVALS + 2, desc="prove", unit="setting", disable=None, leave=False) as bar:
            tuned = prove(found, goal, look, second, pairs=pairs, budget=budget, advance=bar.update)
        paths = write_tuned(out, tuned, axes, goal, name, beneath, overwrite=overwrite)
    click.echo(_told(tuned, axes, goal, baseline(beneath)))
    for path in paths:
        click.echo(click.format_filename(path))


def _told(tuned: "Tuned", axes: "Sequence[Axis]", goal: "Goal", what: str) -> str:
    """What was found, for people."""
    from ssd1b.lab.tuning import labels_of

    def row(word: str, each: "Candidate", score: str, difference: str) -> list[str]:
        return [word, *labels_of(axes, each.choice), f"{each.passes:.4g}", score, difference]

    fresh, gain = tuned.score, tuned.gain
    names = [axis.name.upper() for axis in axes]
    rows = [["", *names, "PASSES", "SCORE", "BEHIND BY"]]
    rows.append(row("winner", tuned.winner, f"{fresh.mean:.3g}", ""))
    for each in tuned.verdicts:
        between = f"{each.behind.mean:z.3g} ({each.behind.low:z.3g} to {each.behind.high:z.3g})"
        rows.append(row(each.word, each.rival, f"{each.rival.scores.mean():.3g}", between))
    front = [["", *names, "PASSES", "SCORE"]]
    front += [
        ["", *labels_of(axes, e.choice), f"{e.passes:.4g}", f"{e.scores.mean():.3g}"] for e in tuned.front
    ]
    return "\n".join(
        [
            f"{goal}: {fresh.mean:.3g} ({fresh.low:.3g} to {fresh.high:.3g}) on {fresh.size} fresh pairs, "
            f"{gain.mean:+.3g} ({gain.low:+.3g} to {gain.high:+.3g}) against {what}",
            f"{tuned.searched} combinations were tried, {tuned.dropped} of them given up early",
            "",
            columns(rows),
            "",
            "the best for each number of passes, in the search:",
            columns(front),
            "",
        ]
    )
