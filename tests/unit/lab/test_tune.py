"""Tuning against a world in which the best settings are known."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from lab_cells import FAKE, inline
from ssd1b.controls import Control
from ssd1b.errors import InputError
from ssd1b.evaluate.image_statistics import STATISTICS
from ssd1b.inputs import InputFile
from ssd1b.jobs.store import Store
from ssd1b.lab.axes import Axis, parse_axis
from ssd1b.lab.evaluator import CellEvaluator
from ssd1b.lab.goal import LIMITS, NEEDS, Bound, Goal, read_goal
from ssd1b.lab.sweep import Sweep
from ssd1b.lab.tune import (
    RIVALS,
    Combination,
    Evaluate,
    Measurement,
    Pair,
    fixed_axes,
    front,
    prove,
    search,
)
from ssd1b.lab.tune_files import open_study, write_tuned
from ssd1b.loras import Lora
from ssd1b.presets import load_preset
from ssd1b.settings import GenerationSettings, resolve_settings

AXES = [parse_axis("guidance=1-9"), parse_axis("steps=5,10,20"), parse_axis("sampler=UniPC,Euler,DDPM")]
GOAL = read_goal("right")
PAIRS: list[Pair] = [(f"prompt {number}", number) for number in range(48)]
FRESH: list[Pair] = [(f"prompt {number}", 1000 + number) for number in range(96)]

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def study(seed: int = 0) -> optuna.Study:
    sampler = optuna.samplers.TPESampler(seed=seed)
    return optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)


class World:
    """Pictures are right by chance; the chance depends on the settings and on the prompt's difficulty."""

    def __init__(
        self,
        chances: "dict[Combination | None, float] | None" = None,
        *,
        clipping: float = 0.0,
        own_steps: int = 20,
    ) -> None:
        self.chances, self.clipping, self.own_steps = chances, clipping, own_steps
        self.drawn = 0

    def chance(self, choice: Combination | None) -> float:
        if self.chances is not None:
            return self.chances[choice]
        if choice is None:
            return 0.4
        guidance, steps, _ = choice
        return 0.85 - 0.09 * abs(guidance - 5) - (0.3, 0.05, 0.0)[steps]

    def __call__(self, choice: Combination | None, pairs: "list[Pair]") -> list[Measurement]:
        self.drawn += len(pairs)
        found = []
        for prompt, seed in pairs:
            rng = np.random.default_rng(
                [seed, *map(ord, prompt), 0 if choice is None else 1, *(choice or ())]
            )
            right = float(rng.random() < self.chance(choice))
            steps = self.own_steps if choice is None else (5, 10, 20)[choice[1]] if len(choice) > 1 else 10
            metrics = {"right": right, "clipping": self.clipping * (choice[0] if choice else 0)}
            found.append(Measurement(score=GOAL.score(metrics), passes=2.0 * steps, metrics=metrics))
        return found


def searched(world: Evaluate, axes: "list[Axis]" = AXES, *, trials: int = 60, goal=GOAL, **how: Any):
    return search(axes, goal, world, PAIRS, study=study, trials=trials, **how)


def test_a_planted_better_setting_is_found_and_the_rest_is_given_up_early() -> None:
    world = World()
    found = searched(world)
    assert found[0].combination is None
    tuned = prove(found, GOAL, world, FRESH, pairs=len(PAIRS))
    assert tuned.winner.combination is not None
    guidance, steps, _ = tuned.winner.combination
    assert abs(guidance - 5) <= 1 and steps >= 1
    assert tuned.gain.low > 0.2
    assert tuned.score.low > 0.6
    assert world.drawn <= len(PAIRS) * len(found) + len(FRESH) * (RIVALS + 2)


@pytest.mark.parametrize("own_steps", [5, 20])
def test_what_is_clearly_behind_is_given_up_early_but_not_what_is_faster(own_steps: int) -> None:
    world = World({None: 0.9, **{(place,): 0.2 for place in range(9)}}, own_steps=own_steps)
    found = searched(world, [parse_axis("guidance=1-9")], trials=30)
    lengths = [len(each.images) for each in found[1:]]
    assert len(lengths) >= 5
    if own_steps == 5:
        assert max(lengths) <= 16
    else:
        assert lengths.count(len(PAIRS)) >= len(lengths) / 2


def test_a_planted_tie_is_not_distinguishable_and_a_planted_loser_is_worse() -> None:
    world = World({None: 0.3, (0,): 0.8, (1,): 0.8, (2,): 0.78, (3,): 0.45})
    found = searched(world, [parse_axis("guidance=2,4,6,8")], trials=20)
    tuned = prove(found, GOAL, world, [*FRESH, *((f"more {n}", n) for n in range(100))], pairs=len(PAIRS))
    words = {verdict.rival.combination: verdict.verdict for verdict in tuned.comparisons}
    tied = words.keys() & {(0,), (1,), (2,)}
    assert tied and {words[choice] for choice in tied} == {"not distinguishable"}
    assert words[None] == "worse" and words.get((3,), "worse") == "worse"


def test_among_settings_that_are_all_the_same_hardly_ever_a_winner_is_declared() -> None:
    false = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)

        def look(
            choice: Combination | None, pairs: "list[Pair]", rng: np.random.Generator = rng
        ) -> list[Measurement]:
            right = (rng.random(len(pairs)) < 0.7) * 1.0
            return [Measurement(score=each, passes=1.0, metrics={"right": each}) for each in right]

        found = search(
            [parse_axis("guidance=1-9")], GOAL, look, PAIRS[:16], study=partial(study, trial), trials=9
        )  # fmt: skip
        tuned = prove(found, GOAL, look, FRESH[:40], pairs=16)
        false += any(verdict.verdict == "worse" for verdict in tuned.comparisons)
    assert false / 60 <= 0.1


def test_a_search_that_goes_on_draws_nothing_again_and_asks_for_the_rest() -> None:
    told = study()
    cache: dict = {}
    world = World()

    def look(choice: Combination | None, pairs: "list[Pair]") -> list[Measurement]:
        missing = [pair for pair in pairs if (choice, pair) not in cache]
        cache.update(
            {(choice, pair): each for pair, each in zip(missing, world(choice, missing), strict=True)}
        )
        return [cache[choice, pair] for pair in pairs]

    search(AXES, GOAL, look, PAIRS, study=lambda: told, trials=7)
    before, drawn = len(told.trials), world.drawn
    again = search(AXES, GOAL, look, PAIRS, study=lambda: told, trials=7)
    assert (len(told.trials), world.drawn) == (before, drawn)
    search(AXES, GOAL, look, PAIRS, study=lambda: told, trials=9)
    assert len(told.trials) == before + 2
    assert {each.combination for each in again} <= {
        None,
        *(tuple(t.user_attrs["choice"]) for t in told.trials),
    }


def test_guards_and_budgets_are_kept() -> None:
    # Guidance from 6 on clips too much, and 20 steps cost too much.
    world = World(clipping=0.01)
    goal = read_goal("right", ["clipping<=0.035"])
    found = searched(world, goal=goal)
    tuned = prove(found, goal, world, FRESH, pairs=len(PAIRS), budget=30.0)
    assert tuned.winner.combination is not None
    guidance, steps, _ = tuned.winner.combination
    assert guidance <= 3 and steps <= 1
    assert all(not each.violations(goal) for each in front(found, goal, len(PAIRS)))
    with pytest.raises(InputError, match=r"budget is 2 UNet passes: the cheapest .* take 10"):
        prove(found, goal, world, FRESH, pairs=len(PAIRS), budget=2.0)
    strict = Goal(weights={"right": 1.0}, guards=(Bound(metric="right", at_most=False, bound=2.0),))
    with pytest.raises(InputError, match=r"keeps every guard: right is .*, not right>=2"):
        prove(found, strict, world, FRESH, pairs=len(PAIRS))


def known_passes(combination: Combination) -> float:
    return (10.0, 20.0, 40.0)[combination[1]]


@pytest.mark.parametrize(("least_passes", "most_images"), [(known_passes, 0), (lambda combination: 0.0, 8)])
def test_what_is_over_budget_is_not_tried_and_never_listed(least_passes, most_images: int) -> None:
    found = searched(World(), budget=30.0, least_passes=least_passes)
    over = [each for each in found[1:] if each.combination and known_passes(each.combination) > 30]
    assert all(len(each.images) <= most_images for each in over) and bool(over) == bool(most_images)
    tuned = prove(found, GOAL, World(), FRESH, pairs=len(PAIRS), budget=30.0)
    assert tuned.front and all(each.passes <= 30 for each in [tuned.winner, *tuned.front])
    assert {each.rival.passes > 30 for each in tuned.comparisons if each.rival.combination} == {False}


def test_a_search_ends_where_nothing_is_within_budget() -> None:
    found = searched(World(), budget=5.0, least_passes=known_passes)
    assert [each.combination for each in found] == [None]


def test_the_passes_of_a_combination_are_known_in_advance(tmp_path: Path) -> None:
    axes = [parse_axis("guidance=1,5"), parse_axis("sampler=euler,heun"), parse_axis("feature-reuse=0,0.1")]
    evaluator = CellEvaluator(
        store=Store(tmp_path / "cells"), executor=inline(None), axes=axes, goal=GOAL, model="fake",
        describe=lambda name: FAKE, base={"steps": 4}, device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    passes = {each: evaluator.least_passes(each) for each in product((0, 1), (0, 1), (0,))}
    assert passes == {(0, 0, 0): 4, (0, 1, 0): 7, (1, 0, 0): 8, (1, 1, 0): 14}
    assert evaluator.least_passes((1, 1, 1)) == 0, "features may be reused"
    distilled = replace(evaluator, describe=lambda name: FAKE._replace(embeds_guidance=True))
    assert distilled.least_passes((1, 1, 0)) == 7
    late = replace(evaluator, base={"steps": 4, "guidance_interval": (0.5, 1.0)})
    assert late.least_passes((1, 0, 0)) == 4


def test_the_preset_of_a_winner_has_what_axes_change_in_loras_and_controls(tmp_path: Path) -> None:
    def file(digit: str) -> dict[str, str]:
        return {"sha256": 64 * digit, "path": f"/{digit}.safetensors"}

    def loaded(settings: Mapping[str, Any]) -> GenerationSettings:
        return resolve_settings("x", family="sdxl", model_defaults={"seed": 1}, preset=None, **settings)

    base = {
        "steps": 7,
        "loras": (Lora(file=InputFile(**file("1")), unet=0.8, text=0.5),),
        "controls": (Control(model=InputFile(**file("2")), picture=InputFile(**file("3"))),),
    }
    axes = [parse_axis("lora-strength=0.5,2"), parse_axis("control-scale=0.3,0.7"), parse_axis("guidance=4")]
    chances = {None: 0.1, (0, 0, 0): 0.2, (0, 1, 0): 0.3, (1, 0, 0): 0.2, (1, 1, 0): 0.9}
    found = searched(World(chances), axes, trials=12)
    tuned = prove(found, GOAL, World(chances), FRESH, pairs=len(PAIRS))
    assert tuned.winner.combination == (1, 1, 0)
    write_tuned(tmp_path, tuned, axes, GOAL, "m", base)
    preset = loaded(load_preset(str(tmp_path / "preset.json")).settings)
    assert (preset.loras[0].unet, preset.loras[0].text, preset.controls[0].scale) == (1.6, 1.0, 0.7)
    what = Sweep(prompts=("x",), axes=fixed_axes(axes, (1, 1, 0)), model="m", settings=base)
    assert preset == loaded(what.request((0, 0, 0, 0)).settings), "what the winner's images were made with"
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    assert tuned["winner"]["settings"].keys() == {"loras", "controls", "guidance_scale"}
    (baseline,) = (each for each in tuned["rivals"] if each["passes"] == 40.0)
    assert baseline["settings"] == {}


def test_the_front_is_beaten_by_none() -> None:
    found = searched(World())
    best = front(found, GOAL, len(PAIRS))
    assert [each.passes for each in best] == sorted({each.passes for each in best})
    scores = [each.scores.mean() for each in best]
    assert scores == sorted(scores)


def test_goals_are_read() -> None:
    goal = read_goal("right + 0.5*clip + -2*clipping", ["clean>=0.9", " clipping <= 1e-3 "])
    assert goal.weights == {"right": 1.0, "clip": 0.5, "clipping": -2.0}
    assert goal.guards[1] == Bound(metric="clipping", at_most=True, bound=0.001)
    assert goal.score({"right": 1.0, "clip": 0.4, "clipping": 0.1}) == pytest.approx(1.0)
    low, high = {"clean": 1.0, "clipping": 0.0}, {"clean": 0.7, "clipping": 0.0}
    assert goal.violations([low]) == [] and goal.violations([low, high]) == ["clean is 0.85, not clean>=0.9"]
    assert str(goal) == "right + 0.5*clip + -2*clipping, clean>=0.9, clipping<=0.001"
    for wrong in ("", "right * 2", "right - clip", "Right"):
        with pytest.raises(InputError, match="is not a sum"):
            read_goal(wrong)
    with pytest.raises(InputError, match="is not a bound"):
        read_goal("right", ["clipping<0.1"])
    with pytest.raises(InputError, match="unknown metric 'rigth': did you mean 'right'"):
        read_goal("rigth").score({"right": 1.0})


def test_every_metric_that_can_be_named_has_limits() -> None:
    assert NEEDS.keys() | {*STATISTICS} <= LIMITS.keys()
    assert all(low < high for low, high in LIMITS.values())


@pytest.mark.parametrize(
    ("guards", "words"),
    [
        (["right>=1.01"], "right>=1.01 cannot hold: right lies between 0 and 1"),
        (["clipping<=-0.5"], "clipping<=-0.5 cannot hold"),
        (["contrast>=1e3"], "between 0 and 127.5"),
        (["right>=0.5", "right<=0.4"], "guards right>=0.5 and right<=0.4 cannot both hold"),
        (["nothing<=1"], "unknown metric 'nothing'"),
    ],
)
def test_guards_that_nothing_can_pass_are_refused(guards: "list[str]", words: str) -> None:
    with pytest.raises(InputError) as refused:
        read_goal("right", guards)
    assert words in str(refused.value)
    read_goal("right", ["right>=1", "right<=1", "clipping<=0", "clipping>=-3", "clip<=1e9"])


def test_a_damaged_memory_of_a_search_is_one_line(tmp_path: Path) -> None:
    open_study(tmp_path, AXES, GOAL, {}).ask()
    log = tmp_path / "search.log"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    for content in (
        b"\xff\xfe" * 50 + b"\n" + whole, b"{}\n" + whole, b"[1]\n" + whole, lines[0][:9] + b"\n" + whole,
        whole.replace(b'"op_code":0', b'"op_code":"a"'), b"null\n" * 3,
    ):  # fmt: skip
        log.write_bytes(content)
        with pytest.raises(InputError, match=r"search.log is damaged .* move it away"):
            open_study(tmp_path, AXES, GOAL, {}).ask()
    log.write_bytes(whole)
    open_study(tmp_path, AXES, GOAL, {}).ask()


def test_a_full_disk_leaves_the_memory_of_a_search_as_it_was(tmp_path: Path, monkeypatch) -> None:
    told = open_study(tmp_path, AXES, GOAL, {})
    told.ask()
    before = (tmp_path / "search.log").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(InputError, match=r"cannot write .*search.log: no space left .*; finished cells"):
            told.ask()
    assert (tmp_path / "search.log").read_bytes() == before
    assert open_study(tmp_path, AXES, GOAL, {}).ask().number == 1
