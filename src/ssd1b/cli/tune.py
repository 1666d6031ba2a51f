"""``ssd1b tune``: search for the best settings, and prove them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from ssd1b.cli.command import AGAIN, TEXT, Command
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    cluster_options,
    model_options,
    preset_option,
    prompt_options,
    setting_options,
)
from ssd1b.cli.paths import check_outputs, echo_path, out_option, overwrite_option
from ssd1b.cli.table import columns
from ssd1b.errors import InputError
from ssd1b.settings import Preset
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from ssd1b.lab.axes import Axis
    from ssd1b.lab.goal import Goal
    from ssd1b.lab.tune import Candidate, Tuned

TRIALS = Annotated[int, Range(1, 100_000)]
BUDGET = Annotated[float, Range(1, 1_000_000)]
MINUTES = Annotated[float, Range(0.01, 525_600)]
PAIRS = Annotated[int, Range(8, 100_000)]

DEFAULT_AXES = (
    "guidance=1-15 (+0.5)",
    "steps=6-30 (+2)",
    "sampler=UniPC,Euler,DDPM,DPM++ 2M,DDIM",
    "guidance-rescale=0,0.35,0.7",
)
"""The default search space: the article's ranges, and later additions."""


@click.command("tune", cls=Command, needs=("scipy", "optuna"), continues=AGAIN)
@prompt_options
@click.option(
    "--axis",
    "axes",
    type=TEXT,
    multiple=True,
    metavar="NAME=VALUES",
    help="A setting to search, as in sweep.",
)
@click.option(
    "--metric",
    default="flawless",
    show_default=True,
    metavar="SUM",
    help="The metric to maximise, or a sum: right + 0.5*clip.",
)
@click.option(
    "--guard",
    "guards",
    multiple=True,
    metavar="BOUND",
    help="A bound that a metric must keep: clipping<=0.05, clean>=0.9.",
)
@click.option("--budget", type=float, metavar="PASSES", help="Most UNet forward passes per image.")
@click.option(
    "--trials",
    type=int,
    default=60,
    show_default=True,
    help="Number of combinations to try, including earlier ones.",
)
@click.option("--minutes", type=float, help="Time limit, after which no trial begins.")
@click.option(
    "--pairs", type=int, default=48, show_default=True, help="Pairs of prompt and seed for each combination."
)
@click.option("--fresh", type=int, default=96, show_default=True, help="Pairs for the proof.")
@setting_options
@preset_option
@model_options
@cluster_options
@out_option("Folder for cells, search and preset.", required=True)
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
    preset: Preset | None,
    choice: ModelChoice,
    out: str,
    overwrite: bool,
) -> None:
    """Search for the best settings of a model, and prove them on pairs that the search did not use.

    Optuna's TPE sampler proposes combinations. All of them generate the same pairs of prompt and seed, and
    those that are clearly inferior are stopped early. The best combination and its closest rivals then
    generate fresh pairs, which decide whether each rival is worse or not statistically distinguishable. One
    rival is the baseline: the model's own settings with the options given here. Without prompts, the
    miniatures use held-out captions. Run the same command again to resume a search. Several processes may
    share a folder.

    \b
    Examples:
      ssd1b tune --out tuned
      ssd1b tune --budget 20 --guard "clipping<=0.05" --out tuned
      ssd1b tune --model ssd-1b --file prompts.txt --metric clip --axis guidance=3-15 --out mine
      ssd1b generate "a red cube" --preset tuned/preset.json
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.lab.axes import parse_axis, settings_of
    from ssd1b.lab.goal import read_goal

    for name, allowed, value in (
        ("trials", TRIALS, trials), ("pairs", PAIRS, pairs), ("fresh", PAIRS, fresh),
        ("budget", BUDGET, budget), ("minutes", MINUTES, minutes),
    ):  # fmt: skip
        if value is not None:
            check(name, value, allowed)
    if "seed" in overrides:
        raise InputError("seed is no setting that can be tuned: each pair has its own seed")
    found = [parse_axis(each) for each in axes or DEFAULT_AXES]
    check_settings(prompts or ["a sphere"], overrides, preset, settings_of(found))
    if twice := [axis.name for axis in found if [each.name for each in found].count(axis.name) > 1]:
        raise InputError(f"axis {twice[0]} is given twice: put all its values into one")
    if other := [axis.name for axis in found if axis.name in ("seed", "words", "model")]:
        raise InputError(f"axis {other[0]} is no setting that can be tuned")
    goal = read_goal(metric, guards)

    from ssd1b.actions.lab import tune
    from ssd1b.cli.display import progress
    from ssd1b.lab.tune_files import FILES, describe_baseline

    check_outputs(out, FILES, overwrite=overwrite)
    base = {**(preset.settings if preset else {}), **overrides}
    result = tune(
        choice.name, found, goal, Path(out), choice.loading(), prompts=prompts, base=base, budget=budget,
        trials=trials, minutes=minutes, pairs=pairs, fresh=fresh, overwrite=overwrite, progress=progress,
    )  # fmt: skip
    click.echo(_summary(result.tuned, found, goal, describe_baseline(base)))
    for path in result.files:
        echo_path(path)


def _summary(tuned: "Tuned", axes: "Sequence[Axis]", goal: "Goal", baseline: str) -> str:
    from ssd1b.lab.tune import labels_of

    def row(word: str, each: "Candidate", score: str, difference: str) -> list[str]:
        return [word, *labels_of(axes, each.combination), f"{each.passes:.4g}", score, difference]

    fresh, gain = tuned.score, tuned.gain
    names = [axis.name.upper() for axis in axes]
    rows = [["", *names, "PASSES", "SCORE", "BEHIND BY"]]
    rows.append(row("winner", tuned.winner, f"{fresh.mean:.3g}", ""))
    for each in tuned.comparisons:
        between = f"{each.behind.mean:z.3g} ({each.behind.low:z.3g} to {each.behind.high:z.3g})"
        rows.append(row(each.verdict, each.rival, f"{each.rival.scores.mean():.3g}", between))
    front = [["", *names, "PASSES", "SCORE"]]
    front += [
        ["", *labels_of(axes, e.combination), f"{e.passes:.4g}", f"{e.scores.mean():.3g}"]
        for e in tuned.front
    ]
    return "\n".join(
        [
            f"{goal}: {fresh.mean:.3g} ({fresh.low:.3g} to {fresh.high:.3g}) on {fresh.size} fresh pairs, "
            f"{gain.mean:+.3g} ({gain.low:+.3g} to {gain.high:+.3g}) against {baseline}",
            f"combinations tried: {tuned.searched}, stopped early: {tuned.dropped}",
            *([f"{baseline} is better than the winner: keep it"] if gain.high < 0 else []),
            "",
            columns(rows),
            "",
            "the best for each number of passes, in the search:",
            columns(front),
            "",
        ]
    )
