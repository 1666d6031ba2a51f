"""The best settings for a model, prompts, a goal and what a picture may cost: searched, then proven.

The search draws pairs of prompt and seed, the same for all settings, so that settings are compared on equal
terms; one that is clearly behind another that is no dearer is given up after a few pairs (racing, Maron &
Moore 1994). What wins a search is partly luck. So the winner and its best rivals draw fresh pairs afterwards,
and only these say which rival is worse and which is merely not to be told apart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssd1b.errors import InputError
from ssd1b.evaluate.statistics import Estimate, difference, differences, estimate
from ssd1b.lab.axes import Axis, number_of
from ssd1b.lab.goal import Goal

if TYPE_CHECKING:
    import optuna

Pair = tuple[str, int]
"""A prompt and a seed."""

Choice = tuple[int, ...]
"""A value's place on each axis."""

FIRST_RUNG = 8
"""Pairs after which settings are compared for the first time, and then whenever their number has doubled."""

RIVALS = 8
"""Settings beside the winner that are drawn on fresh pairs."""

_NAME = "tune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What became of one pair.

    Attributes:
        score: the goal's.
        passes: of the UNet.
        metrics: everything that was measured.
    """

    score: float
    passes: float
    metrics: Mapping[str, float]


Look = Callable[[Choice | None, Sequence[Pair]], list[Seen]]
"""``look(choice, pairs)``: draw and measure; None is the baseline: no axis sets anything."""


@dataclass(slots=True)
class Candidate:
    """Settings with what was seen of them."""

    choice: Choice | None
    seen: list[Seen] = field(default_factory=list)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Of the pairs in their order."""
        return np.array([each.score for each in self.seen])

    @property
    def passes(self) -> float:
        """Of the UNet, for a picture; the mean, since only with ``feature_reuse`` pictures differ."""
        return float(np.mean([each.passes for each in self.seen]))

    def broken(self, goal: Goal) -> list[str]:
        """Guards that it breaks."""
        return goal.broken([each.metrics for each in self.seen])


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What fresh pairs say of a rival.

    Attributes:
        rival: with its fresh pairs.
        behind: by how much the winner exceeds it, with an interval that holds for all rivals together.
    """

    rival: Candidate
    behind: Estimate

    @property
    def word(self) -> str:
        """In words."""
        if self.behind.low > 0:
            return "worse"
        return "better" if self.behind.high < 0 else "not distinguishable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What tuning found.

    Attributes:
        winner: with its fresh pairs.
        score: its mean on them.
        gain: over the baseline, paired.
        verdicts: on the rivals, the nearest first; the baseline is among them.
        front: of the search, settings that no other one beats in both score and passes, the cheapest first.
        searched: how many settings were tried; dropped: how many of them were given up early.
    """

    winner: Candidate
    score: Estimate
    gain: Estimate
    verdicts: list[Verdict]
    front: list[Candidate]
    searched: int
    dropped: int


def search(
    axes: Sequence[Axis], goal: Goal, look: Look, pairs: Sequence[Pair], *,
    study: Callable[[], "optuna.Study"], trials: int, go_on: Callable[[], bool] = lambda: True,
    advance: Callable[[], Any] = lambda: None,
) -> list[Candidate]:  # fmt: skip
    """Try settings, as many as a study is to have in all.

    Args:
        axes: what may be set, and to what.
        goal: what is to be as large as can be.
        look: draws and measures.
        pairs: in the order in which they are drawn.
        study: opens what remembers what was tried, after the first pictures: a search that is refused leaves
            nothing. Other processes may work on it, too.
        trials: of the study.
        go_on: asked before each trial.
        advance: told of each trial that is done.

    Returns:
        Every combination that was tried, with as many pairs as were drawn of it; the baseline first.
    """
    own = Candidate(None, look(None, pairs))
    memory = study()
    tried: dict[Choice | None, Candidate] = {None: own}

    def remember() -> int:
        """Take over what this study has tried before, or another process meanwhile; how much that is."""
        finished = memory.get_trials(deepcopy=False, states=_finished())
        for trial in finished:
            _raced(tuple(trial.user_attrs["choice"]), tried, goal, look, pairs)
        return len(finished)

    while remember() < trials and go_on():
        trial = memory.ask()
        choice = tuple(_suggested(trial, axis) for axis in axes)
        found = _raced(choice, tried, goal, look, pairs)
        trial.set_user_attr("choice", choice)
        # What breaks a guard is as bad as the worst that was seen.
        worst = min(float(each.scores.mean()) for each in tried.values())
        score = worst if found.broken(goal) else float(found.scores.mean())
        memory.tell(trial, [score, found.passes])
        advance()
    return list(tried.values())


def _raced(
    choice: Choice, tried: dict[Choice | None, Candidate], goal: Goal, look: Look, pairs: Sequence[Pair]
) -> Candidate:
    """Draw more and more pairs of a combination, until it is clearly behind or there are no more."""
    if choice in tried:
        return tried[choice]
    found = Candidate(choice)
    for until in _rungs(len(pairs)):
        found.seen += look(choice, pairs[len(found.seen) : until])
        if _beaten(found, tried.values(), goal):
            break
    tried[choice] = found
    return found


def _rungs(count: int) -> Iterator[int]:
    rung = FIRST_RUNG
    while rung < count:
        yield rung
        rung *= 2
    yield count


def _beaten(found: Candidate, tried: Iterable[Candidate], goal: Goal) -> bool:
    """Whether any other one is better by more than chance, and no dearer; many others, many chances."""
    count = len(found.seen)
    rivals = [
        each.scores[:count]
        for each in tried
        if len(each.seen) >= count and each.passes <= found.passes and not each.broken(goal)
    ]
    return bool(rivals) and any(each.low > 0 for each in differences(found.scores, rivals))


def front(candidates: Iterable[Candidate], goal: Goal, pairs: int) -> list[Candidate]:
    """Settings that were drawn to the end, keep the guards, and are beaten by none in both score and cost."""
    whole = [each for each in candidates if len(each.seen) == pairs and not each.broken(goal)]
    whole.sort(key=lambda each: (each.passes, -each.scores.mean()))
    best, found = -np.inf, []
    for each in whole:
        if each.scores.mean() > best:
            best = each.scores.mean()
            found.append(each)
    return found


def prove(
    candidates: Sequence[Candidate], goal: Goal, look: Look, fresh: Sequence[Pair], *, pairs: int,
    budget: float | None = None, advance: Callable[[], Any] = lambda: None,
) -> Tuned:  # fmt: skip
    """Draw fresh pairs with the winner of a search and its best rivals, and tell them apart.

    Args:
        candidates: of the search, the baseline first.
        goal: of the search.
        look: draws and measures.
        fresh: pairs that the search has not seen.
        pairs: how many the search had.
        budget: passes of the UNet that a picture may take.
        advance: told of each combination that has drawn its fresh pairs; there are ``RIVALS`` + 2 at most.

    Raises:
        InputError: no settings keep the guards and the budget.
    """
    whole = [each for each in candidates if len(each.seen) == pairs and not each.broken(goal)]
    affordable = [each for each in whole if budget is None or each.passes <= budget]
    if not affordable:
        raise InputError(_why_none(candidates, goal, pairs, budget))
    ranked = sorted(affordable, key=lambda each: -each.scores.mean())
    own = candidates[0]
    chosen = list({each.choice: each for each in [*ranked[: RIVALS + 1], own]}.values())
    again = []
    for each in chosen:
        again.append(Candidate(each.choice, look(each.choice, fresh)))
        advance()
    winner, rivals = again[0], again[1:]
    behind = [
        Estimate(-each.mean, -each.high, -each.low, each.size)
        for each in differences(winner.scores, [rival.scores for rival in rivals])
    ] if rivals else []  # fmt: skip
    verdicts = [Verdict(rival=rival, behind=each) for rival, each in zip(rivals, behind, strict=True)]
    again_own = next(each for each in again if each.choice is None)
    return Tuned(
        winner=winner,
        score=estimate(winner.scores),
        gain=difference(again_own.scores, winner.scores),
        verdicts=sorted(verdicts, key=lambda each: each.behind.mean),
        front=front(candidates, goal, pairs),
        searched=len(candidates) - 1,
        dropped=sum(len(each.seen) < pairs for each in candidates),
    )


def _why_none(candidates: Sequence[Candidate], goal: Goal, pairs: int, budget: float | None) -> str:
    whole = [each for each in candidates if len(each.seen) == pairs]
    reasons = [reason for each in whole for reason in each.broken(goal)[:1]]
    least = min(each.passes for each in whole)
    if budget is not None and least > budget:
        return f"budget is {budget:g} passes of the UNet: the cheapest settings tried take {least:.4g}"
    return f"none of the {len(whole)} settings that were tried keeps every guard: {reasons[0]}"


def _suggested(trial: "optuna.Trial", axis: Axis) -> int:
    """A place on an axis; numbers that rise are near each other, all else is a choice."""
    places = range(len(axis.values))
    numbers = np.array([number_of(value) for value in axis.values])
    if (np.diff(numbers) > 0).all():  # not where one is NaN
        return trial.suggest_int(axis.name, 0, len(places) - 1)
    return trial.suggest_categorical(axis.name, list(places))


def _finished() -> "tuple[optuna.trial.TrialState, ...]":
    from optuna.trial import TrialState

    return (TrialState.COMPLETE,)
