"""Search for the best settings of a model, then a proof on fresh pairs of prompt and seed.

The search draws the same pairs for all combinations of settings, so that they are compared in pairs. A
combination that is significantly worse than one of no higher cost is dropped after a few pairs (racing, Maron
& Moore 1994). The winner of a search is partly lucky. Therefore the winner and its best rivals draw fresh
pairs afterwards, and only these decide which rivals are worse and which are not distinguishable.
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

Combination = tuple[int, ...]
"""The index of a value on each axis."""

FIRST_RUNG = 8
"""Pairs before the first comparison. Further comparisons follow whenever the number of pairs has doubled."""

RIVALS = 8
"""Combinations beside the winner that draw fresh pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A picture of one pair.

    Attributes:
        score: by the goal.
        passes: UNet passes that it took.
        metrics: all metrics by name.
    """

    score: float
    passes: float
    metrics: Mapping[str, float]


Evaluate = Callable[[Combination | None, Sequence[Pair]], list[Measured]]
"""``evaluate(combination, pairs)`` draws and measures. None is the baseline: no axis sets anything."""


@dataclass(slots=True)
class Candidate:
    """A combination with the pictures that were drawn of it."""

    combination: Combination | None
    pictures: list[Measured] = field(default_factory=list)

    @property
    def scores(self) -> NDArray[np.float64]:
        """The score of each picture, in the order of the pairs."""
        return np.array([each.score for each in self.pictures])

    @property
    def passes(self) -> float:
        """Mean UNet passes for a picture. Only with ``feature_reuse`` do pictures differ in them."""
        return float(np.mean([each.passes for each in self.pictures]))

    def broken(self, goal: Goal) -> list[str]:
        """The guards that the combination breaks."""
        return goal.broken([each.metrics for each in self.pictures])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison of a rival with the winner on fresh pairs.

    Attributes:
        rival: with its fresh pairs.
        behind: the winner's mean score minus the rival's; the intervals hold for all rivals together.
    """

    rival: Candidate
    behind: Estimate

    @property
    def word(self) -> str:
        """The result in words."""
        if self.behind.low > 0:
            return "worse"
        return "better" if self.behind.high < 0 else "not distinguishable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The result of tuning.

    Attributes:
        winner: with its fresh pairs.
        score: the winner's mean score on them.
        gain: the winner's score minus the baseline's, paired.
        comparisons: with the rivals, the closest first; the baseline is one of them.
        front: the Pareto front of the search in score and passes, the cheapest combination first.
        searched: how many combinations were tried.
        dropped: how many of them were dropped early.
    """

    winner: Candidate
    score: Estimate
    gain: Estimate
    comparisons: list[Comparison]
    front: list[Candidate]
    searched: int
    dropped: int


def search(
    axes: Sequence[Axis], goal: Goal, evaluate: Evaluate, pairs: Sequence[Pair], *,
    study: Callable[[], "optuna.Study"], trials: int, go_on: Callable[[], bool] = lambda: True,
    advance: Callable[[], Any] = lambda: None,
) -> list[Candidate]:  # fmt: skip
    """Try combinations until the study has a number of trials.

    Args:
        axes: what is searched.
        goal: what is maximised.
        evaluate: draws and measures.
        pairs: in the order in which they are drawn.
        study: opens the study, after the first pictures, so that a search that is refused leaves nothing
            behind. Other processes may work on the same study.
        trials: the study's number of trials, earlier ones included.
        go_on: called before each trial; False ends the search.
        advance: called after each trial.

    Returns:
        All combinations that were tried, with as many pictures as were drawn; the baseline first.
    """
    baseline = Candidate(None, evaluate(None, pairs))
    opened = study()
    tried: dict[Combination | None, Candidate] = {None: baseline}

    def update() -> int:
        """Add the study's trials, by this process or others; return their number."""
        finished = opened.get_trials(deepcopy=False, states=_finished())
        for trial in finished:
            _race(tuple(trial.user_attrs["choice"]), tried, goal, evaluate, pairs)
        return len(finished)

    while update() < trials and go_on():
        trial = opened.ask()
        combination = tuple(_suggested(trial, axis) for axis in axes)
        candidate = _race(combination, tried, goal, evaluate, pairs)
        trial.set_user_attr("choice", combination)
        # A combination that breaks a guard counts as the worst so far.
        worst = min(float(each.scores.mean()) for each in tried.values())
        score = worst if candidate.broken(goal) else float(candidate.scores.mean())
        opened.tell(trial, [score, candidate.passes])
        advance()
    return list(tried.values())


def _race(
    combination: Combination, tried: dict[Combination | None, Candidate], goal: Goal, evaluate: Evaluate,
    pairs: Sequence[Pair],
) -> Candidate:  # fmt: skip
    """Draw pairs of a combination until it is significantly worse than another, or all are drawn."""
    if combination in tried:
        return tried[combination]
    candidate = Candidate(combination)
    for until in _rungs(len(pairs)):
        candidate.pictures += evaluate(combination, pairs[len(candidate.pictures) : until])
        if _is_beaten(candidate, tried.values(), goal):
            break
    tried[combination] = candidate
    return candidate


def _rungs(count: int) -> Iterator[int]:
    rung = FIRST_RUNG
    while rung < count:
        yield rung
        rung *= 2
    yield count


def _is_beaten(candidate: Candidate, tried: Iterable[Candidate], goal: Goal) -> bool:
    """Whether a combination of no higher cost is significantly better, corrected for multiple comparisons."""
    count = len(candidate.pictures)
    rivals = [
        each.scores[:count]
        for each in tried
        if len(each.pictures) >= count and each.passes <= candidate.passes and not each.broken(goal)
    ]
    return bool(rivals) and any(each.low > 0 for each in differences(candidate.scores, rivals))


def front(candidates: Iterable[Candidate], goal: Goal, pairs: int) -> list[Candidate]:
    """The Pareto front in score and passes of combinations that drew all pairs and keep the guards."""
    whole = [each for each in candidates if len(each.pictures) == pairs and not each.broken(goal)]
    whole.sort(key=lambda each: (each.passes, -each.scores.mean()))
    best, found = -np.inf, []
    for each in whole:
        if each.scores.mean() > best:
            best = each.scores.mean()
            found.append(each)
    return found


def prove(
    candidates: Sequence[Candidate], goal: Goal, evaluate: Evaluate, fresh: Sequence[Pair], *, pairs: int,
    budget: float | None = None, advance: Callable[[], Any] = lambda: None,
) -> Tuned:  # fmt: skip
    """Draw fresh pairs with the winner of a search and its best rivals, and compare them.

    Args:
        candidates: of the search, the baseline first.
        goal: of the search.
        evaluate: draws and measures.
        fresh: pairs that the search did not draw.
        pairs: the number of pairs in the search.
        budget: most UNet passes that a picture may take.
        advance: called for each combination that has drawn its fresh pairs, at most ``RIVALS`` + 2 times.

    Raises:
        InputError: no combination keeps the guards and the budget.
    """
    whole = [each for each in candidates if len(each.pictures) == pairs and not each.broken(goal)]
    affordable = [each for each in whole if budget is None or each.passes <= budget]
    if not affordable:
        raise InputError(_why_none(candidates, goal, pairs, budget))
    ranked = sorted(affordable, key=lambda each: -each.scores.mean())
    baseline = candidates[0]
    chosen = list({each.combination: each for each in [*ranked[: RIVALS + 1], baseline]}.values())
    again = []
    for each in chosen:
        again.append(Candidate(each.combination, evaluate(each.combination, fresh)))
        advance()
    winner, rivals = again[0], again[1:]
    behind = [
        Estimate(-each.mean, -each.high, -each.low, each.size)
        for each in differences(winner.scores, [rival.scores for rival in rivals])
    ] if rivals else []  # fmt: skip
    compared = [Comparison(rival=rival, behind=each) for rival, each in zip(rivals, behind, strict=True)]
    baseline = next(each for each in again if each.combination is None)
    return Tuned(
        winner=winner,
        score=estimate(winner.scores),
        gain=difference(baseline.scores, winner.scores),
        comparisons=sorted(compared, key=lambda each: each.behind.mean),
        front=front(candidates, goal, pairs),
        searched=len(candidates) - 1,
        dropped=sum(len(each.pictures) < pairs for each in candidates),
    )


def _why_none(candidates: Sequence[Candidate], goal: Goal, pairs: int, budget: float | None) -> str:
    whole = [each for each in candidates if len(each.pictures) == pairs]
    reasons = [reason for each in whole for reason in each.broken(goal)[:1]]
    least = min(each.passes for each in whole)
    if budget is not None and least > budget:
        return f"budget is {budget:g} passes of the UNet: the cheapest settings tried take {least:.4g}"
    return f"none of the {len(whole)} settings that were tried keeps every guard: {reasons[0]}"


def _suggested(trial: "optuna.Trial", axis: Axis) -> int:
    """Suggest an index on an axis: ordinal if the values are rising numbers, else categorical."""
    places = range(len(axis.values))
    numbers = np.array([number_of(value) for value in axis.values])
    if (np.diff(numbers) > 0).all():  # False if one is NaN
        return trial.suggest_int(axis.name, 0, len(places) - 1)
    return trial.suggest_categorical(axis.name, list(places))


def single(axes: Sequence[Axis], combination: Combination) -> tuple[Axis, ...]:
    """The axes with one value each."""
    return tuple(
        Axis(name=axis.name, values=(axis.values[place],))
        for axis, place in zip(axes, combination, strict=True)
    )


def settings_of(axes: Sequence[Axis], combination: Combination | None) -> dict[str, Any]:
    """The settings of a combination; those of the baseline are empty."""
    settings: dict[str, Any] = {}
    for axis in () if combination is None else single(axes, combination):
        settings |= axis.values[0].settings
    return settings


def labels_of(axes: Sequence[Axis], combination: Combination | None) -> list[str]:
    """The labels of a combination's values."""
    if combination is None:
        return ["baseline"] * len(axes)
    return [axis.values[0].label for axis in single(axes, combination)]


def _finished() -> "tuple[optuna.trial.TrialState, ...]":
    from optuna.trial import TrialState

    return (TrialState.COMPLETE,)
