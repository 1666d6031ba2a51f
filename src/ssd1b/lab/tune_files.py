"""Files of tuning: the study of a search, and the result as ``tuned.json`` and ``preset.json``."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd1b.errors import InputError, shown
from ssd1b.files import check_regular, disk_error, named
from ssd1b.inputs import with_tables
from ssd1b.lab.axes import Axis
from ssd1b.lab.goal import Goal
from ssd1b.lab.results import PASSES
from ssd1b.lab.tune import Candidate, Tuned, settings_of
from ssd1b.saving import renewing
from ssd1b.weights.files import write_json

if TYPE_CHECKING:
    import optuna

FILES = ("tuned.json", "preset.json")
"""The files that ``write_tuned`` writes."""


def open_study(out: Path, axes: Sequence[Axis], goal: Goal, context: Mapping[str, Any]) -> "optuna.Study":
    """Open or create a search's study in ``search.log``, which may contain several studies.

    Args:
        out: the file's folder.
        axes: the search space.
        goal: the search's goal.
        context: everything else that scores depend on, as JSON.

    Raises:
        InputError: the file is damaged, or the disk refused.
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
                    os.truncate(path, size)  # a partial line would corrupt the next one
                advice = "; finished cells are kept, and the same command resumes the search"
                raise disk_error(f"cannot write {named(path)}", error, advice) from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    labels = [[axis.name, *(value.label for value in axis.values)] for axis in axes]
    name = sha256(json.dumps([labels, str(goal), PASSES, context], sort_keys=True).encode()).hexdigest()[:16]
    try:
        return optuna.create_study(
            study_name=name, directions=["maximize", "minimize"], load_if_exists=True,
            storage=JournalStorage(Journal(str(path))), sampler=optuna.samplers.TPESampler(seed=0),
        )  # fmt: skip
    except InputError:
        raise
    except OSError as error:
        raise disk_error(f"cannot write {named(path)}", error) from error
    except Exception as error:  # Optuna does not validate the file: any exception is possible
        raise InputError(
            f"{named(path)} is damaged ({shown(error)}): move it away; the same command starts a "
            "new search and reuses the cells in the store"
        ) from error


def as_json(
    tuned: Tuned, axes: Sequence[Axis], goal: Goal, model: str, base: Mapping[str, Any]
) -> dict[str, Any]:
    """The result as JSON."""

    def describe(each: Candidate) -> dict[str, Any]:
        return {"settings": with_tables(settings_of(axes, each.combination, base)), "passes": each.passes}

    return {
        "model": model,
        "goal": str(goal),
        "winner": {**describe(tuned.winner), "score": tuned.score._asdict()},
        "gain": tuned.gain._asdict(),
        "rivals": [
            {**describe(each.rival), "behind": each.behind._asdict(), "verdict": each.verdict}
            for each in tuned.comparisons
        ],
        "front": [{**describe(each), "score": float(each.scores.mean())} for each in tuned.front],
        "searched": tuned.searched,
        "dropped": tuned.dropped,
        "ssd1b": version("ssd1b"),
    }


def describe_baseline(base: Mapping[str, Any]) -> str:
    """Describe the baseline of a search with these base settings."""
    words = ", ".join(f"{name} {value}" for name, value in base.items())
    return f"the model's default settings{' with ' if words else ''}{words}"


def write_tuned(
    out: Path, tuned: Tuned, axes: Sequence[Axis], goal: Goal, model: str, base: Mapping[str, Any],
    *, overwrite: bool = False,
) -> list[Path]:  # fmt: skip
    """Write ``tuned.json``, and ``preset.json`` for ``--preset``.

    Args:
        out: the folder.
        tuned: the result of tuning.
        axes: the search space.
        goal: the search's goal.
        model: the model's name.
        base: settings that all combinations share.
        overwrite: also replace files that tuning did not write, or that were changed since.

    Returns:
        The paths of both files.
    """
    gain, ties = tuned.gain, sum(each.verdict == "not distinguishable" for each in tuned.comparisons)
    source = (
        f"ssd1b tune, {goal} on {model}: {tuned.score.mean:.3g} ({tuned.score.low:.3g} to "
        f"{tuned.score.high:.3g}) on {tuned.score.size} fresh pairs, {gain.mean:+.3g} ({gain.low:+.3g} to "
        f"{gain.high:+.3g}) against {describe_baseline(base)}; {ties} of {len(tuned.comparisons)} rivals are "
        "not distinguishable"
    )
    settings = with_tables({**base, **settings_of(axes, tuned.winner.combination, base)})
    preset = {"name": "tuned", "source": source, "settings": settings}
    paths = [out / name for name in FILES]
    for path, content in zip(paths, (as_json(tuned, axes, goal, model, base), preset), strict=True):
        with renewing(path, overwrite=overwrite) as aside:
            write_json(aside, content)
    return paths
