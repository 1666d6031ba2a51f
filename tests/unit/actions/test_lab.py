"""The lab's use cases, called as a notebook calls them."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ssd1b.actions.lab import guide, sweep, tune
from ssd1b.actions.loading import Loading
from ssd1b.actions.worlds import WORLDS
from ssd1b.errors import InputError
from ssd1b.jobs.store import Store
from ssd1b.lab.axes import parse_axis
from ssd1b.lab.goal import read_goal
from ssd1b.lab.guide import FAULTS
from ssd1b.lab.results import load_results
from ssd1b.lab.sweep import Sweep
from ssd1b.presets import NEGATIVE_PROMPTS
from ssd1b.tabletop.world.degradations import DEGRADATIONS

CPU = Loading(device="cpu", dtype="fp32", offline=True)


class Shown:
    """A progress display that keeps what it would show."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, bool]] = []

    @contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Callable[[int], object]]:
        done: list[int] = []
        yield done.append
        self.tasks.append((label, sum(done) == total))


def test_a_sweep_is_drawn_once_and_its_results_are_loaded(tiny_model: Path, tmp_path: Path) -> None:
    what = Sweep(
        prompts=("a cube",), axes=(parse_axis("guidance=1,5"),), model=str(tiny_model), settings={"steps": 1}
    )
    plans, shown = [], Shown()
    dry = sweep(what, tmp_path / "cells", CPU, dry_run=True, begin=plans.append)
    assert dry.images == 0 and not [*tmp_path.iterdir()]
    done = sweep(what, tmp_path / "cells", CPU, begin=plans.append, progress=shown)
    again = sweep(what, tmp_path / "cells", CPU, begin=plans.append)
    assert [len(plan.left) for plan in plans] == [2, 2, 0] and shown.tasks == [("cells", True)]
    assert done.images == again.images == 2 and not done.failures and not again.plan.left
    with closing(Store(tmp_path / "cells")) as store:
        assert load_results(store).drawn.all()


def test_a_search_and_a_guide_show_what_they_do(tiny_model: Path, tmp_path: Path) -> None:
    shown = Shown()
    found = tune(
        str(tiny_model), [parse_axis("guidance=1,5")], read_goal("sharpness"), tmp_path / "tuned", CPU,
        prompts=["a cube"], base={"steps": 1}, trials=2, pairs=8, fresh=8, progress=shown,
    )  # fmt: skip
    assert [label for label, _ in shown.tasks] == ["search", "prove"]
    assert [path.name for path in found.files] == ["tuned.json", "preset.json"]
    told = guide(
        str(tiny_model), tmp_path / "guide", CPU, prompts=["a cube"], pairs=8, only=["negative"],
        base={"steps": 1}, progress=shown,
    )  # fmt: skip
    assert shown.tasks[-1] == ("cells", True) and len(told.findings) == 3
    with pytest.raises(InputError, match="no prompt"):
        guide(str(tiny_model), tmp_path / "other", CPU)


def test_the_judge_recognises_the_faults_that_the_guide_names() -> None:
    truth = WORLDS["tabletop"]
    assert truth.faults == DEGRADATIONS.keys() and truth.faults.issuperset(FAULTS)
    assert list(FAULTS) == [word for word in NEGATIVE_PROMPTS["basic"].split(", ") if word in truth.faults]
    assert len({*truth.captions(8, 10), *truth.captions(8, 11)}) == 16, "streams share no captions"
