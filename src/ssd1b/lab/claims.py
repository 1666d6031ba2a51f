"""The claims of the guide to SSD-1B's settings, each with the comparison that decides it.

All comparisons are between images of the same prompts and noise, and were fixed before anything was measured.
A claim is confirmed or contradicted if the 95% confidence interval lies entirely on one side. Otherwise it is
not decidable on this model, with these images or at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssd1b.evaluate.statistics import Estimate, differences, estimate
from ssd1b.lab.axes import Axis, Value, number_of
from ssd1b.lab.results import DIVERSITY, UNCONVERGED, Results
from ssd1b.settings import GenerationSettings

CONFIRMED = "confirmed"
CONTRADICTED = "contradicted"
UNDECIDED = "not decidable"

ENOUGH = 8
"""With fewer independent pairs, nothing is decided."""

MARGINS = {"flawless": 0.05, "pickscore": 0.2}
"""Differences that count as none: 5 images of 100, or a difference of PickScores at which 55 of 100 people
prefer one image of two (its sigmoid; Kirstain et al. 2023, 2305.01569, section 3)."""

VISIBLE = 2.5
"""Smallest visible root mean square distance of thumbnails, in levels of 256: a hundredth of the range."""

Metrics = tuple[str, ...]
"""Metrics whose values are averaged."""

QUALITY: tuple[Metrics, ...] = (("flawless",), ("pickscore",))
OBEDIENCE: tuple[Metrics, ...] = (("shape", "color", "size", "number", "background"), ("clip",))
DETAIL: tuple[Metrics, ...] = (("material",), ("sharpness",))
"""How a claim is measured, the most reliable first: the judge's metrics if the model declares a world."""

_WORDS = {
    "flawless": "images that are entirely right and not spoiled",
    "pickscore": "PickScore",
    "shape": "share of the caption that the image shows",
    "clip": "CLIP score",
    "material": "solids with the right material",
    "sharpness": "sharpness",
    "clean": "images that are not spoiled",
    DIVERSITY: "distance between images of different seeds, in units of their contrast,",
    UNCONVERGED: "distance from the image with the most steps",
}
"""Descriptions of measures, by the first of the averaged metrics."""

_SHARES = {"flawless", "shape", "material", "clean"}
"""Metrics between 0 and 1, which are reported in percent."""

Selector = Callable[[Value, GenerationSettings], bool]
"""``selector(value, model_settings)``: whether to use a value of an axis, given the model's defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of testing a claim.

    Attributes:
        verdict: ``CONFIRMED``, ``CONTRADICTED`` or ``UNDECIDED``.
        summary: the result in words.
        estimate: the deciding difference; None if nothing could be compared.
    """

    verdict: str
    summary: str
    estimate: Estimate | None = None


Decide = Callable[[Results, GenerationSettings], Finding]
"""``decide(results, model_settings)`` decides from an experiment's results and the model's defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of the article.

    Attributes:
        name: a short name for tables and JSON.
        says: the article's words.
        experiment: the name of the experiment that decides it.
        decide: the decision rule.
    """

    name: str
    says: str
    experiment: str
    decide: Decide


def more(measures: Sequence[Metrics], selected: Selector, reference: Selector, *, sign: int = 1) -> Decide:
    """Decide whether a measure is larger (``sign`` 1) or smaller (-1) at some values than at a reference."""

    def compare(series: _Series) -> Finding:
        found, summary = series.compare(selected, reference)
        low, high = sorted((sign * found.low, sign * found.high))
        return Finding(verdict=_verdict(low, high, found.size), summary=summary, estimate=found)

    return _by_first_known(measures, compare)


def steady(measures: Sequence[Metrics], selected: Selector, reference: Selector) -> Decide:
    """Decide whether a measure is the same at some values as at a reference, within its margin."""

    def compare(series: _Series) -> Finding:
        found, summary = series.compare(selected, reference)
        margin = MARGINS[series.measure[0]]
        # Even if no pair differed, up to 3 in n might (the rule of three), which resampling cannot show.
        unseen = 3 / found.size if series.measure[0] in _SHARES else 0.0
        # Bounds on the absolute difference.
        most, least = max(abs(found.low), abs(found.high), unseen), max(found.low, -found.high, 0)
        return Finding(
            verdict=_verdict(margin - most, margin - least, found.size), estimate=found,
            summary=f"{summary}; differences up to {_amount(series.measure, margin)} count as none",
        )  # fmt: skip

    return _by_first_known(measures, compare)


def at_least(metric: str, level: float, selector: Selector) -> Decide:
    """Decide whether a metric's mean exceeds a level."""

    def compare(series: _Series) -> Finding:
        places = series.places(selector)
        found = estimate(series.values[places].mean(axis=0))
        summary = (
            f"{series.named(places)}: {_WORDS[metric]} {found.mean:.2g} "
            f"({found.low:.2g} to {found.high:.2g}); visible from {level:g}"
        )
        return Finding(
            verdict=_verdict(found.low - level, found.high - level, found.size),
            summary=summary,
            estimate=found,
        )

    return _by_first_known([(metric,)], compare)


def better(measures: Sequence[Metrics], label: str, reference: str) -> Decide:
    """Decide whether one value is better than a reference, with intervals simultaneous over all values."""

    def compare(series: _Series) -> Finding:
        found = series.against(reference)[label]
        return Finding(
            verdict=_verdict(found.low, found.high, found.size), estimate=found,
            summary=f"{label} against {reference}: {_difference(series.measure, found)}",
        )  # fmt: skip

    return _by_first_known(measures, compare)


def recommended(measures: Sequence[Metrics], label: str) -> Decide:
    """Decide whether no other value is better than this one, and at least one is worse.

    The intervals are simultaneous over all others. The finding's estimate is the difference from the best
    one.
    """

    def compare(series: _Series) -> Finding:
        rivals = series.against(label)
        best = max(rivals, key=lambda name: rivals[name].mean)
        verdicts = {name: _verdict(each.low, each.high, each.size) for name, each in rivals.items()}
        ahead, behind = (
            [name for name in rivals if verdicts[name] == verdict] for verdict in (CONFIRMED, CONTRADICTED)
        )
        summary = (
            f"{best}, the best of the others: {_difference(series.measure, rivals[best])}; significantly "
            f"better: {', '.join(ahead) or 'none'}; significantly worse: {', '.join(behind) or 'none'}"
        )
        verdict = CONTRADICTED if ahead else CONFIRMED if behind else UNDECIDED
        return Finding(verdict=verdict, summary=summary, estimate=rivals[best])

    return _by_first_known(measures, compare)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """A measure along an experiment's axis, which is the last setting axis of its sweep.

    Attributes:
        axis: the setting.
        model_settings: the model's default settings.
        measure: the metrics that were averaged.
        values: the measure, ``[values of the axis, units]``.
    """

    axis: Axis
    model_settings: GenerationSettings
    measure: Metrics
    values: NDArray[np.float64]

    def places(self, selector: Selector) -> list[int]:
        """Indices of the selected values."""
        return [place for place, value in enumerate(self.axis.values) if selector(value, self.model_settings)]

    def named(self, places: list[int]) -> str:
        """Name the axis and the values at these indices."""
        return f"{self.axis.name} {', '.join(self.axis.values[place].label or 'empty' for place in places)}"

    def compare(self, selected: Selector, reference: Selector) -> tuple[Estimate, str]:
        """The mean at the selected values minus that at the reference, also in words."""
        first, second = self.places(selected), self.places(reference)
        found = estimate(self.values[first].mean(axis=0) - self.values[second].mean(axis=0))
        summary = f"{self.named(first)} against {self.named(second)}: {_difference(self.measure, found)}"
        return found, summary

    def against(self, label: str) -> dict[str, Estimate]:
        """Each other value minus this one, with simultaneous intervals."""
        labels = [value.label for value in self.axis.values]
        place = labels.index(label)
        found = differences(self.values[place], np.delete(self.values, place, axis=0))
        return dict(zip([*labels[:place], *labels[place + 1 :]], found, strict=True))


def _by_first_known(measures: Sequence[Metrics], compare: Callable[[_Series], Finding]) -> Decide:
    """Decide by the first measure that is known; without any, the claim is undecided."""

    def decide(results: Results, model_settings: GenerationSettings) -> Finding:
        measure = next((each for each in measures if set(each) <= set(results.known_metrics)), None)
        if measure is None:
            names = " or ".join(_WORDS[each[0]] for each in measures)
            return Finding(verdict=UNDECIDED, summary=f"not measured for this model: {names}")
        place = results.setting_axes[-1]
        values = np.mean([results.units(name, (place,)) for name in measure], axis=0)
        return compare(
            _Series(axis=results.axes[place], model_settings=model_settings, measure=measure, values=values)
        )

    return decide


def _verdict(low: float, high: float, size: int) -> str:
    if size < ENOUGH:
        return UNDECIDED
    return CONFIRMED if low > 0 else CONTRADICTED if high < 0 else UNDECIDED


def _difference(measure: Metrics, found: Estimate) -> str:
    words = _WORDS[measure[0]]
    if found.low == found.mean == found.high == 0:
        return f"{words}: no difference in any of {found.size} pairs"
    if measure[0] in _SHARES:
        mean, low, high = (100 * each for each in found[:3])
        return f"{words} {mean:+.1f} points ({low:+.1f} to {high:+.1f})"
    return f"{words} {found.mean:+.3g} ({found.low:+.3g} to {found.high:+.3g})"


def _amount(measure: Metrics, value: float) -> str:
    return f"{100 * value:.3g} points" if measure[0] in _SHARES else f"{value:.2g}"


def _between(low: int, high: int) -> Selector:
    return lambda value, model_settings: low <= number_of(value) <= high


def _default_guidance(value: Value, model_settings: GenerationSettings) -> bool:
    return number_of(value) == model_settings.guidance_scale


def _labelled(label: str) -> Selector:
    return lambda value, model_settings: value.label == label


DETAILED, STRICT = _between(12, 17), _between(19, 25)

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="guidance near 1 costs quality", experiment="guidance",
        says="values near 1 may slightly compromise artistic quality",
        decide=more(QUALITY, _between(1, 1), _default_guidance, sign=-1),
    ),
    Claim(
        name="guidance of 12 to 17 adds details", experiment="guidance",
        says="between 12 and 17 the emphasis shifts to details in the image",
        decide=more(DETAIL, DETAILED, _between(2, 9)),
    ),
    Claim(
        name="guidance above 19 is strict", experiment="guidance",
        says="values above 19 or 20 enforce strict adherence to the text",
        decide=more(OBEDIENCE, STRICT, DETAILED),
    ),
    Claim(
        name="guidance above 19 costs quality", experiment="guidance",
        says="values above 19 or 20 may also impact artistic quality",
        decide=more(QUALITY, STRICT, DETAILED, sign=-1),
    ),
    Claim(
        name="more guidance costs diversity", experiment="guidance",
        says="a higher value comes at the expense of diversity",
        decide=more([(DIVERSITY,)], _between(12, 25), _between(1, 5), sign=-1),
    ),
    Claim(
        name="quality is reached by 15 to 25 steps", experiment="steps",
        says="high-quality images are notably observed between 15 and 25 steps",
        decide=more(QUALITY, _between(15, 25), _between(5, 8)),
    ),
    Claim(
        name="quality is stable beyond 25 steps", experiment="steps",
        says="beyond this range further steps make no significant difference in quality",
        decide=steady(QUALITY, _between(40, 60), _between(25, 25)),
    ),
    Claim(
        name="the form changes beyond 25 steps", experiment="steps",
        says="but the form of the image undergoes repeated changes",
        decide=at_least(UNCONVERGED, VISIBLE, _between(25, 40)),
    ),
    Claim(
        name="negative prompts suppress what they name", experiment="faults",
        says="negative prompts tell what should not be seen",
        decide=more([("clean",)], _labelled("named"), _labelled("none")),
    ),
    *(
        Claim(
            name=f"the negative prompt “{name}” raises quality", experiment="negative",
            says="negative prompts enhance overall image quality",
            decide=better(QUALITY, name, "none"),
        )
        for name in ("basic", "adult-content", "realistic-people")
    ),
    *(
        Claim(
            name=f"{name} is recommended", experiment="sampler",
            says="UniPC, Euler and DDPM are highly recommended",
            decide=recommended(QUALITY, name),
        )
        for name in ("UniPC", "Euler", "DDPM")
    ),
)  # fmt: skip
"""In the article's order."""
