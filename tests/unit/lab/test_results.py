"""Figures of a sweep: what is averaged, what is independent, what is compared."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lab_cells import Fake, run, sweep, wanted
from ssd1b.errors import InputError
from ssd1b.jobs.executor import JobResult
from ssd1b.jobs.store import DONE, Outcome, Store
from ssd1b.lab.results import DIVERSITY, PASSES, UNCONVERGED, load_results
from ssd1b.lab.sweep import definition
from ssd1b.settings import GenerationSettings

TEN = tuple(f"a cube {number}" for number in range(10))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "cells")) as opened:
        yield opened


def measuring(**metrics: Callable[[GenerationSettings], float]) -> Callable[..., list[JobResult]]:
    """What draws pictures of which everything is known."""

    def one(settings: GenerationSettings) -> JobResult:
        found = {name: float(measure(settings)) for name, measure in metrics.items()}
        level = min(250, settings.seed * 10 + settings.steps)
        passes = found.pop("passes", 1.0)
        form = bytes([level - 5, level + 5]) * (16 * 16 * 3 // 2)  # a contrast of 5
        outcome = Outcome(state=DONE, digest="d", passes=passes, metrics=found, thumbnail=form)
        return JobResult(outcome, b"picture")

    return lambda batch, watch: [one(settings) for settings in batch]


def test_other_settings_and_seeds_are_averaged_and_prompts_are_the_units(store: Store) -> None:
    what = sweep("steps=1-3", "guidance=2,5", "seed=1-4", prompts=TEN)
    fake = measuring(sum=lambda s: s.steps * 100 + s.guidance_scale * 10 + s.seed)
    run(store, what, fake)
    found = load_results(store)
    names = [axis.name for axis in found.axes]
    steps, guidance = names.index("steps"), names.index("guidance")
    assert found.many_prompts and set(found.setting_axes) == {steps, guidance}
    assert found.units("sum", (steps,)).shape == (3, 10)
    assert [each.mean for each in found.estimates("sum", (steps,))] == pytest.approx([137.5, 237.5, 337.5])
    both = [each.mean for each in found.estimates("sum", (guidance, steps))]
    assert both == pytest.approx([s * 100 + g * 10 + 2.5 for g in (2, 5) for s in (1, 2, 3)])
    assert {each.size for each in found.estimates("sum", (steps,))} == {10}


def test_of_few_prompts_the_pairs_of_prompt_and_seed_are_the_units(store: Store) -> None:
    run(store, sweep("guidance=2,5", "seed=1-6", prompts=("a cube", "a cone")), measuring(x=lambda s: s.seed))
    found = load_results(store)
    assert not found.many_prompts
    assert found.units("x", found.setting_axes).shape == (2, 12)


def test_diversity_is_over_seeds_and_convergence_over_steps(store: Store) -> None:
    # Levels are 10 x seed + steps: seeds 1, 2, 4 differ by 10, 20, 30, and steps 1, 5 from 7 by 6 and 2.
    run(store, sweep("steps=1,7,5", "seed=1,2,4"), measuring())
    found = load_results(store)
    assert [axis.name for axis in found.axes] == ["prompt", "seed", "steps"]
    for steps in range(3):
        assert found.metrics[DIVERSITY][0, :, steps] == pytest.approx([4, 3, 5], rel=1e-4)
    assert found.metrics[UNCONVERGED][0, 0] == pytest.approx([6, np.nan, 2], nan_ok=True)


def test_what_is_missing_or_failed_is_counted_and_left_out(store: Store) -> None:
    run(store, sweep("seed=1,2", prompts=("a cube", "a broken one")), Fake())
    found = load_results(store)
    assert found.failures == {"the picture is no numbers": 2} and found.missing == 0
    assert found.estimates("red", ())[0].size == 2
    assert np.isnan(found.metrics[DIVERSITY][1]).all()
    longer = sweep("seed=1,2,3", prompts=("a cube", "a broken one"))
    cells = wanted(longer)
    keys = [cell.key for cell in cells]
    store.record("longer", definition(longer), list(zip(keys, longer.places, strict=True)))
    assert load_results(store).missing == 2


def test_the_front_is_what_nothing_beats_in_both(store: Store) -> None:
    # Of steps 1 to 4, 3 costs more than 2 and no better.
    quality, passes = {1: 0.2, 2: 0.7, 3: 0.6, 4: 0.9}, {1: 1, 2: 2, 3: 3, 4: 4}
    fake = measuring(right=lambda s: quality[s.steps], passes=lambda s: passes[s.steps])
    run(store, sweep("steps=1-4", "seed=1,2"), fake)
    found = load_results(store)
    assert found.quality == "right"
    assert found.front("right").tolist() == [True, True, False, True]
    assert [each.mean for each in found.estimates(PASSES, found.setting_axes)] == [1, 2, 3, 4]


def test_a_sweep_is_found_by_the_beginning_of_its_id_and_the_last_one_without(store: Store) -> None:
    with pytest.raises(InputError, match="contains no sweep yet"):
        load_results(store)
    run(store, sweep("seed=1,2"), Fake())
    run(store, sweep("seed=1,2,3"), Fake())
    first, _ = store.sweeps()
    assert load_results(store).keys.shape == (1, 3)
    assert load_results(store, first[:6]).keys.shape == (1, 2)
    with pytest.raises(InputError, match="unknown sweep 'nothing'"):
        load_results(store, "nothing")
    with pytest.raises(InputError, match="unknown metric 'blue'"):
        load_results(store).estimates("blue", ())


def test_a_sweep_of_which_nothing_is_drawn(store: Store) -> None:
    run(store, sweep("seed=1,2", prompts=("a broken one",)), Fake())
    with pytest.raises(InputError, match="no cell of this sweep is done: 0 cells are missing, 2 failed"):
        load_results(store)
