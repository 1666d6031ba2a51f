"""Search for the best settings of a model, then test the winner on fresh pairs of prompt and seed.

The search generates the same pairs for all combinations of settings, so that comparisons are paired. A
combination that is significantly worse than one of no higher cost is dropped after a few pairs (racing, Maron
& Moore 1994). The winner of a search is partly lucky. Therefore the winner and its best rivals are run on
fresh pairs afterwards, and only these decide which rivals are worse and which are not distinguishable.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssd1b.errors import InputError
from ssd1b.evaluate.statistics import Estimate, difference, differences, estimate
from ssd1b.lab.axes import Axis, applied, number_of
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
"""Combinations that are compared with the winner on fresh pairs, in addition to the baseline."""

MAX_REJECTED = 1000
"""The search ends after as many proposals in a row that are over budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The metrics of the image of one pair.

    Attributes:
        score: the goal's score.
        passes: UNet passes that the image took.
        metrics: all metrics by name.
    """

    score: float
    passes: float
    metrics: Mapping[str, float]


Evaluate = Callable[[Combination | None, Sequence[Pair]], list[Measurement]]
"""``evaluate(combination, pairs)`` generates and measures images. None is the baseline: no axis applies."""


@dataclass(slots=True)
class Candidate:
    """A combination and the images measured so far."""

    combination: Combination | None
    images: list[Measurement] = field(default_factory=list)

    @property
    def scores(self) -> NDArray[np.float64]:
        """The score of each image, in the order of the pairs."""
        return np.array([each.score for each in self.images])

    @property
    def passes(self) -> float:
        """Mean UNet passes per image. They differ between images only with ``feature_reuse``."""
        return float(np.mean([each.passes for each in self.images]))

    def violations(self, goal: Goal) -> list[str]:
        """Describe the guards that the combination violates."""
        return goal.violations([each.metrics for each in self.images])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison of a rival with the winner on fresh pairs.

    Attributes:
        rival: measured on the fresh pairs.
        behind: the winner's mean score minus the rival's, with an interval simultaneous over all rivals.
    """

    rival: Candidate
    behind: Estimate

    @property
    def verdict(self) -> str:
        """The result of the comparison in words."""
        if self.behind.low > 0:
            return "worse"
        return "better" if self.behind.high < 0 else "not distinguishable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The result of tuning.

    Attributes:
        winner: measured on the fresh pairs.
        score: the winner's mean score on them.
        gain: the winner's score minus the baseline's, paired.
        comparisons: one for each rival, the closest first; the baseline is one of them.
        front: the search's Pareto front in score and passes, within the budget; the cheapest comes first.
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
    study: Callable[[], "optuna.Study"], trials: int, budget: float | None = None,
    least_passes: Callable[[Combination], float] = lambda combination: 0.0,
    keep_going: Callable[[], bool] = lambda: True, advance: Callable[[], Any] = lambda: None,
) -> list[Candidate]:  # fmt: skip
    """Try combinations until the study has a number of trials.

    Args:
        axes: the search space.
        goal: what is maximised.
        evaluate: generates and measures images.
        pairs: in the order in which they are generated.
        study: opens the study, after the first images, so that a search that is refused leaves nothing
            behind. Other processes may work on the same study.
        trials: the study's number of trials, earlier ones included.
        budget: most UNet passes per image. Combinations over budget are dropped, without generating an image
            where ``least_passes`` is over budget.
        least_passes: a lower bound on a combination's passes, known in advance.
        keep_going: called before each trial; False ends the search.
        advance: called after each trial.

    Returns:
        All combinations that were tried, with the images that were generated; the baseline first.
    """
    from optuna.trial import TrialState

    baseline = Candidate(None, evaluate(None, pairs))
    opened = study()
    tried: dict[Combination | None, Candidate] = {None: baseline}
    most = math.inf if budget is None else budget

    def race(combination: Combination) -> Candidate | None:
        if combination not in tried:
            if least_passes(combination) > most:
                return None
            tried[combination] = _race(combination, tried.values(), goal, evaluate, pairs, most)
        return tried[combination]

    def update() -> int:
        """Add the study's trials, by this process or others; return their number."""
        finished = opened.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        for trial in finished:
            race(tuple(trial.user_attrs["choice"]))
        return len(finished)

    rejected = 0
    while update() < trials and rejected < MAX_REJECTED and keep_going():
        trial = opened.ask()
        combination = tuple(_suggest(trial, axis) for axis in axes)
        candidate = race(combination)
        if candidate is None:
            opened.tell(trial, state=TrialState.FAIL)
            rejected += 1
            continue
        rejected = 0
        trial.set_user_attr("choice", combination)
        # A combination that violates a guard counts as the worst so far.
        worst = min(float(each.scores.mean()) for each in tried.values())
        score = worst if candidate.violations(goal) else float(candidate.scores.mean())
        opened.tell(trial, [score, candidate.passes])
        advance()
    return list(tried.values())


def _race(
    combination: Combination, tried: Iterable[Candidate], goal: Goal, evaluate: Evaluate,
    pairs: Sequence[Pair], most: float,
) -> Candidate:  # fmt: skip
    """Evaluate a combination on more and more pairs, until it is over budget or significantly worse."""
    candidate = Candidate(combination)
    for until in _rungs(len(pairs)):
        candidate.images += evaluate(combination, pairs[len(candidate.images) : until])
        if candidate.passes > most or _is_beaten(candidate, tried, goal):
            break
    return candidate


def _rungs(count: int) -> Iterator[int]:
    rung = FIRST_RUNG
    while rung < count:
        yield rung
        rung *= 2
    yield count


def _is_beaten(candidate: Candidate, tried: Iterable[Candidate], goal: Goal) -> bool:
    """Whether a combination of no higher cost is significantly better, corrected for multiple comparisons."""
    count = len(candidate.images)
    rivals = [
        each.scores[:count]
        for each in tried
        if len(each.images) >= count and each.passes <= candidate.passes and not each.violations(goal)
    ]
    return bool(rivals) and any(each.low > 0 for each in differences(candidate.scores, rivals))


def _eligible(
    candidates: Iterable[Candidate], goal: Goal, pairs: int, budget: float | None
) -> list[Candidate]:
    """Combinations that completed all pairs and keep the guards and the budget."""
    return [
        each
        for each in candidates
        if len(each.images) == pairs
        and not each.violations(goal)
        and (budget is None or each.passes <= budget)
    ]


def front(
    candidates: Iterable[Candidate], goal: Goal, pairs: int, budget: float | None = None
) -> list[Candidate]:
    """The Pareto front, in score and passes, of the combinations that ``prove`` may choose from."""
    eligible = _eligible(candidates, goal, pairs, budget)
    best, found = -np.inf, []
    for each in sorted(eligible, key=lambda each: (each.passes, -each.scores.mean())):
        if each.scores.mean() > best:
            best = each.scores.mean()
            found.append(each)
    return found


def prove(
    candidates: Sequence[Candidate], goal: Goal, evaluate: Evaluate, fresh: Sequence[Pair], *, pairs: int,
    budget: float | None = None, advance: Callable[[], Any] = lambda: None,
) -> Tuned:  # fmt: skip
    """Compare the winner of a search with its best rivals on fresh pairs.

    Args:
        candidates: the result of ``search``.
        goal: the search's goal.
        evaluate: generates and measures images.
        fresh: pairs that the search did not use.
        pairs: the number of pairs in the search.
        budget: most UNet passes per image. The baseline is compared even if it takes more.
        advance: called after each combination's fresh pairs, at most ``RIVALS`` + 2 times.

    Raises:
        InputError: no combination keeps the guards and the budget.
    """
    ranked = sorted(_eligible(candidates, goal, pairs, budget), key=lambda each: -each.scores.mean())
    if not ranked:
        raise InputError(_why_none(candidates, goal, pairs, budget))
    finalists: list[Candidate] = []
    for combination in dict.fromkeys(each.combination for each in [*ranked[: RIVALS + 1], candidates[0]]):
        finalists.append(Candidate(combination, evaluate(combination, fresh)))
        advance()
    winner, rivals = finalists[0], finalists[1:]
    behind = [
        Estimate(-each.mean, -each.high, -each.low, each.size)
        for each in differences(winner.scores, [rival.scores for rival in rivals])
    ] if rivals else []  # fmt: skip
    comparisons = [Comparison(rival=rival, behind=each) for rival, each in zip(rivals, behind, strict=True)]
    baseline = next(each for each in finalists if each.combination is None)
    return Tuned(
        winner=winner,
        score=estimate(winner.scores),
        gain=difference(baseline.scores, winner.scores),
        comparisons=sorted(comparisons, key=lambda each: each.behind.mean),
        front=front(candidates, goal, pairs, budget),
        searched=len(candidates) - 1,
        dropped=sum(len(each.images) < pairs for each in candidates),
    )


def _why_none(candidates: Sequence[Candidate], goal: Goal, pairs: int, budget: float | None) -> str:
    complete = [each for each in candidates if len(each.images) == pairs]
    reasons = [reason for each in complete for reason in each.violations(goal)[:1]]
    least = min(each.passes for each in complete)
    if budget is not None and least > budget:
        return f"budget is {budget:g} UNet passes: the cheapest settings tried take {least:.4g}"
    return f"none of the {len(complete)} combinations tried keeps every guard: {reasons[0]}"


def _suggest(trial: "optuna.Trial", axis: Axis) -> int:
    """Suggest the index of a value: an ordinal if the values are increasing numbers, else categorical."""
    count = len(axis.values)
    numbers = np.array([number_of(value) for value in axis.values])
    if (np.diff(numbers) > 0).all():  # False if one is NaN
        return trial.suggest_int(axis.name, 0, count - 1)
    return trial.suggest_categorical(axis.name, list(range(count)))


def fixed_axes(axes: Sequence[Axis], combination: Combination | None) -> tuple[Axis, ...]:
    """Reduce each axis to the combination's value; the baseline has no axes."""
    places = () if combination is None else zip(axes, combination, strict=True)
    return tuple(Axis(name=axis.name, values=(axis.values[place],)) for axis, place in places)


def settings_of(
    axes: Sequence[Axis], combination: Combination | None, base: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a combination, also the LoRAs, controls and image prompts of ``base`` that it changes.

    What only ``base`` sets is left out, so those of the baseline are empty.
    """
    values = {axis.name: axis.values[0] for axis in fixed_axes(axes, combination)}
    changed = {name for value in values.values() for name in value.changes}
    return {name: each for name, each in applied(base, values).items() if name in changed}


def labels_of(axes: Sequence[Axis], combination: Combination | None) -> list[str]:
    """The labels of a combination's values."""
    if combination is None:
        return ["baseline"] * len(axes)
    return [axis.values[0].label for axis in fixed_axes(axes, combination)]
