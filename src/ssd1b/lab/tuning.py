"""What tuning draws with and what it leaves: pairs of prompt and seed, cells, the search, the preset."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssd1b.errors import FailedError, InputError, shown
from ssd1b.files import check_regular, disk_error, named
from ssd1b.lab.axes import Axis
from ssd1b.lab.goal import Goal
from ssd1b.lab.metrics import captions
from ssd1b.lab.results import PASSES
from ssd1b.lab.store import FAILED, Store
from ssd1b.lab.sweep import Attempt, Cell, Model, Sweep, cells, draw
from ssd1b.lab.tune import Candidate, Choice, Pair, Seen, Tuned
from ssd1b.saving import renewing
from ssd1b.tabletop.evaluation import SEED
from ssd1b.weights.files import write_json

if TYPE_CHECKING:
    import optuna

STREAMS = (SEED + 10, SEED + 11)
"""Of captions for the search and the proof; ``evaluate`` and ``guide`` have their own."""

ENOUGH_PROMPTS = 16
"""From so many prompts on, the proof has prompts of its own; with fewer, only seeds of its own."""

_COMBINATIONS = 10_000
"""So many are looked at before the search whether they keep the budget."""

FRESH_SEEDS = 1_000_000

FILES = ("tuned.json", "preset.json")
"""What ``write_tuned`` writes."""


def pairs_of(prompts: Sequence[str], model: Model, pairs: int, fresh: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs for the search and for the proof.

    Args:
        prompts: none for captions of Tabletop that no training saw.
        model: that is tuned.
        pairs: for the search.
        fresh: for the proof.

    Raises:
        InputError: there are no prompts, and the model does not draw Tabletop.
    """
    if not prompts:
        first, second = (
            [(caption, number) for number, caption in enumerate(captions(model.path, count, stream=stream))]
            for stream, count in zip(STREAMS, (pairs, fresh), strict=True)
        )
        return first, second
    own, other = (prompts[::2], prompts[1::2]) if len(prompts) >= ENOUGH_PROMPTS else (prompts, prompts)
    return (
        [(own[number % len(own)], number) for number in range(pairs)],
        [(other[number % len(other)], FRESH_SEEDS + number) for number in range(fresh)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Looker:
    """Draws pairs with a combination of settings, each as a cell of the store.

    Attributes:
        store: where cells are kept; axes: what is searched; goal: that scores pictures.
        model: its name; known: finds a model; prepare: loads it.
        beneath: settings that all combinations have.
        device: where to draw; dtype: in which number format.
    """

    store: Store
    axes: Sequence[Axis]
    goal: Goal
    model: str
    known: Callable[[str], Model]
    prepare: Callable[[str], Attempt]
    beneath: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    def __call__(self, choice: Choice | None, pairs: Sequence[Pair]) -> list[Seen]:
        """Draw what is not there yet.

        Raises:
            InputError: a picture failed, or a metric of the goal was not measured, which the first one tells.
        """
        return [*self._seen(choice, pairs[:1]), *self._seen(choice, pairs[1:])]

    def _seen(self, choice: Choice | None, pairs: Sequence[Pair]) -> list[Seen]:
        wanted = [self.cell(choice, pair) for pair in pairs]
        draw(wanted, self.store, lambda name: nullcontext(self.prepare(name)))
        found = self.store.outcomes(cell.key for cell in wanted)
        seen = []
        for cell in wanted:
            outcome = found[cell.key]
            if outcome.state == FAILED or outcome.passes is None:
                raise FailedError(f"a picture of {cell.settings.prompt!r:.80} failed: {outcome.error}")
            metrics = {**(outcome.metrics or {}), PASSES: outcome.passes}
            seen.append(Seen(score=self.goal.score(metrics), passes=outcome.passes, metrics=metrics))
        return seen

    def cell(self, choice: Choice | None, pair: Pair) -> Cell:
        """What is drawn of a combination for a pair."""
        prompt, seed = pair
        one = Sweep(
            prompts=(prompt,), axes=() if choice is None else single(self.axes, choice), model=self.model,
            settings={**self.beneath, "seed": seed},
        )  # fmt: skip
        (cell,) = cells(one, self.known, device=self.device, dtype=self.dtype)
        return cell


def single(axes: Sequence[Axis], choice: Choice) -> tuple[Axis, ...]:
    """The axes with one value each."""
    return tuple(
        Axis(name=axis.name, values=(axis.values[place],)) for axis, place in zip(axes, choice, strict=True)
    )


def settings_of(axes: Sequence[Axis], choice: Choice | None) -> dict[str, Any]:
    """What a combination sets; nothing where it is the baseline."""
    found: dict[str, Any] = {}
    for axis in () if choice is None else single(axes, choice):
        found |= axis.values[0].settings
    return found


def labels_of(axes: Sequence[Axis], choice: Choice | None) -> list[str]:
    """What the values of a combination are called."""
    if choice is None:
        return ["baseline"] * len(axes)
    return [axis.values[0].label for axis in single(axes, choice)]


def opened_study(out: Path, axes: Sequence[Axis], goal: Goal, what: Mapping[str, Any]) -> "optuna.Study":
    """The search's memory in ``out``: one for each question that is asked there.

    Args:
        out: a folder.
        axes: of the search.
        goal: of the search.
        what: everything else that the answers depend on, for JSON.

    Raises:
        InputError: the memory is damaged, or the disk refused.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = out / "search.log"
    if path.exists():
        check_regular(path)

    class Journal(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            size = path.stat().st_size
            try:
                super().append_logs(logs)
            except OSError as error:
                with suppress(OSError):
                    os.truncate(path, size)  # half a line would be in the way of the next
                advice = "; all that was drawn before is kept, and the same command goes on"
                raise disk_error(f"cannot write {named(path)}", error, advice) from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    labels = [[axis.name, *(value.label for value in axis.values)] for axis in axes]
    name = sha256(json.dumps([labels, str(goal), PASSES, what], sort_keys=True).encode()).hexdigest()[:16]
    try:
        return optuna.create_study(
            study_name=name, directions=["maximize", "minimize"], load_if_exists=True,
            storage=JournalStorage(Journal(str(path))), sampler=optuna.samplers.TPESampler(seed=0),
        )  # fmt: skip
    except InputError:
        raise
    except OSError as error:
        raise disk_error(f"cannot write {named(path)}", error) from error
    except Exception as error:  # Optuna checks nothing, and ends by whatever it stumbles over
        raise InputError(
            f"{named(path)} is damaged ({shown(error)}): move it away; the search begins anew, and draws "
            "nothing again of what is in the store"
        ) from error


def check_budget(look: "Looker", budget: float, pair: Pair) -> None:
    """Refuse a budget that no combination of the axes can keep.

    Args:
        look: draws the combinations.
        budget: passes of the UNet.
        pair: any.

    Raises:
        InputError: even the cheapest combination takes more.
    """
    places = product(*(range(len(axis.values)) for axis in look.axes))
    least = math.inf
    for choice in (None, *islice(places, _COMBINATIONS)):
        cell = look.cell(choice, pair)
        if cell.settings.feature_reuse:
            return  # what it leaves out shows when it draws
        least = min(least, cell.evaluations)
        if least <= budget:
            return
    if math.prod(len(axis.values) for axis in look.axes) <= _COMBINATIONS:
        raise InputError(
            f"budget is {budget:g} passes of the UNet: the cheapest settings of these axes take {least:g}"
        )


def facts(tuned: Tuned, axes: Sequence[Axis], goal: Goal, model: str) -> dict[str, Any]:
    """Everything that was found, for JSON."""

    def about(each: Candidate) -> dict[str, Any]:
        return {"settings": settings_of(axes, each.choice), "passes": each.passes}

    return {
        "model": model,
        "goal": str(goal),
        "winner": {**about(tuned.winner), "score": tuned.score._asdict()},
        "gain": tuned.gain._asdict(),
        "rivals": [
            {**about(each.rival), "behind": each.behind._asdict(), "verdict": each.word}
            for each in tuned.verdicts
        ],
        "front": [{**about(each), "score": float(each.scores.mean())} for each in tuned.front],
        "searched": tuned.searched,
        "dropped": tuned.dropped,
        "ssd1b": version("ssd1b"),
    }


def baseline(beneath: Mapping[str, Any]) -> str:
    """What the search is compared with, in words."""
    given = ", ".join(f"{name} {value}" for name, value in beneath.items())
    return f"the model's own settings{' with ' if given else ''}{given}"


def write_tuned(
    out: Path, tuned: Tuned, axes: Sequence[Axis], goal: Goal, model: str, beneath: Mapping[str, Any],
    *, overwrite: bool = False,
) -> list[Path]:  # fmt: skip
    """Write ``tuned.json`` and ``preset.json``, which ``--preset`` takes.

    Args:
        out: a folder.
        tuned: what was found.
        axes: of the search.
        goal: of the search.
        model: its name.
        beneath: settings that all combinations had.
        overwrite: replace also files that no tuning wrote, or that were changed.
    """
    gain, ties = tuned.gain, sum(each.word == "not distinguishable" for each in tuned.verdicts)
    source = (
        f"ssd1b tune, {goal} on {model}: {tuned.score.mean:.3g} ({tuned.score.low:.3g} to "
        f"{tuned.score.high:.3g}) on {tuned.score.size} fresh pairs, {gain.mean:+.3g} ({gain.low:+.3g} to "
        f"{gain.high:+.3g}) against {baseline(beneath)}; {ties} of {len(tuned.verdicts)} rivals are not "
        "distinguishable"
    )
    settings = {**beneath, **settings_of(axes, tuned.winner.choice)}
    preset = {"name": "tuned", "source": source, "settings": settings}
    paths = [out / name for name in FILES]
    for path, content in zip(paths, (facts(tuned, axes, goal, model), preset), strict=True):
        with renewing(path, overwrite=overwrite) as aside:
            write_json(aside, content)
    return paths
