"""The claims of the guide to SSD-1B's settings, each with the comparison that decides it.

All comparisons are between pictures of the same prompts and noise, and were fixed before anything was
measured. A claim is confirmed or contradicted if the 95 % interval lies wholly on one side. Otherwise it is
not decidable on the model, by these pictures or at all.
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
"""With fewer independent pairs nothing is decided."""

MARGINS = {"flawless": 0.05, "pickscore": 0.2}
"""Differences that count as none: 5 pictures of 100, or what makes 55 of 100 people choose one picture of two
(the sigmoid of a difference of PickScores; Kirstain et al. 2023, 2305.01569, section 3)."""

VISIBLE = 2.5
"""Root mean square distance of thumbnails, in levels of 256: a hundredth of the range is visible."""

Metrics = tuple[str, ...]
"""Metrics that are averaged."""

QUALITY: tuple[Metrics, ...] = (("flawless",), ("pickscore",))
OBEDIENCE: tuple[Metrics, ...] = (("shape", "color", "size", "number", "background"), ("clip",))
DETAIL: tuple[Metrics, ...] = (("material",), ("sharpness",))
"""What a claim is measured by, the more reliable first: the judge's counts, if the model has a world."""

_WORDS = {
    "flawless": "pictures with everything right, and not spoiled",
    "pickscore": "PickScore",
    "shape": "what the caption says and the picture shows",
    "clip": "CLIP score",
    "material": "solids with the right material, which the highlight tells",
    "sharpness": "sharpness",
    "clean": "pictures that are not spoiled",
    DIVERSITY: "distance between pictures of different seeds, by their own contrast,",
    UNCONVERGED: "distance from the picture with the most steps",
}
"""The first of averaged metrics in words."""

_SHARES = {"flawless", "shape", "material", "clean"}
"""Metrics between 0 and 1, which are given in percent."""

Where = Callable[[Value, GenerationSettings], bool]
"""``where(value, model_settings)``: whether a value of the axis is meant, given the model's own settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the pictures say about a claim.

    Attributes:
        word: ``CONFIRMED``, ``CONTRADICTED`` or ``UNDECIDED``.
        summary: the result in words.
        estimate: of the deciding difference; None if nothing could be compared.
    """

    word: str
    summary: str
    estimate: Estimate | None = None


Decide = Callable[[Results, GenerationSettings], Finding]
"""``decide(results, model_settings)``: from the experiment's results and the model's own settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of the article.

    Attributes:
        name: short, for tables and JSON.
        says: the article's words.
        experiment: the name of the sweep that decides it.
        decide: how.
    """

    name: str
    says: str
    experiment: str
    decide: Decide


def more(measures: Sequence[Metrics], here: Where, there: Where, *, sign: int = 1) -> Decide:
    """Decide whether a measure is larger (``sign`` 1) or smaller (-1) at some values than at others."""

    def compare(measured: _Measured) -> Finding:
        found, summary = measured.compare(here, there)
        low, high = sorted((sign * found.low, sign * found.high))
        return Finding(word=_word(low, high, found.size), summary=summary, estimate=found)

    return _by_first_known(measures, compare)


def steady(measures: Sequence[Metrics], here: Where, there: Where) -> Decide:
    """Decide whether a measure is the same at some values as at others, within its margin."""

    def compare(measured: _Measured) -> Finding:
        found, summary = measured.compare(here, there)
        margin = MARGINS[measured.measure[0]]
        # If no pair differed, up to 3 in n may yet (the rule of three), which resampling cannot show.
        unseen = 3 / found.size if measured.measure[0] in _SHARES else 0.0
        # Bounds of the difference's distance from zero.
        most, least = max(abs(found.low), abs(found.high), unseen), max(found.low, -found.high, 0)
        return Finding(
            word=_word(margin - most, margin - least, found.size), estimate=found,
            summary=f"{summary}; up to {_amount(measured.measure, margin)} is no difference",
        )  # fmt: skip

    return _by_first_known(measures, compare)


def at_least(metric: str, level: float, where: Where) -> Decide:
    """Decide whether a metric's mean exceeds a level."""

    def compare(measured: _Measured) -> Finding:
        places = measured.places(where)
        found = estimate(measured.values[places].mean(axis=0))
        summary = (
            f"{measured.named(places)}: {_WORDS[metric]} {found.mean:.2g} "
            f"({found.low:.2g} to {found.high:.2g}); {level:g} is visible"
        )
        return Finding(
            word=_word(found.low - level, found.high - level, found.size), summary=summary, estimate=found
        )

    return _by_first_known([(metric,)], compare)


def better(measures: Sequence[Metrics], label: str, reference: str) -> Decide:
    """Decide whether one value is better than another, corrected for all comparisons with the latter."""

    def compare(measured: _Measured) -> Finding:
        found = measured.against(reference)[label]
        return Finding(
            word=_word(found.low, found.high, found.size), estimate=found,
            summary=f"{label} against {reference}: {_difference(measured.measure, found)}",
        )  # fmt: skip

    return _by_first_known(measures, compare)


def recommended(measures: Sequence[Metrics], label: str) -> Decide:
    """Decide whether one value is beaten by no other, and beats at least one.

    The intervals hold for all others together. The finding's estimate is the difference from the best one.
    """

    def compare(measured: _Measured) -> Finding:
        rivals = measured.against(label)
        best = max(rivals, key=lambda name: rivals[name].mean)
        words = {name: _word(each.low, each.high, each.size) for name, each in rivals.items()}
        ahead, behind = (
            [name for name in rivals if words[name] == word] for word in (CONFIRMED, CONTRADICTED)
        )
        summary = (
            f"{best}, the best of the others: {_difference(measured.measure, rivals[best])}; beyond chance "
            f"{', '.join(ahead) or 'none'} ahead of it and {', '.join(behind) or 'none'} behind"
        )
        word = CONTRADICTED if ahead else CONFIRMED if behind else UNDECIDED
        return Finding(word=word, summary=summary, estimate=rivals[best])

    return _by_first_known(measures, compare)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Metrics along an experiment's axis, which is the last one that is a setting.

    Attributes:
        axis: the setting.
        model_settings: the model's own settings.
        measure: the metrics that were averaged.
        values: ``[values of the axis, units]``.
    """

    axis: Axis
    model_settings: GenerationSettings
    measure: Metrics
    values: NDArray[np.float64]

    def places(self, where: Where) -> list[int]:
        """Indices of the values that are meant."""
        return [place for place, value in enumerate(self.axis.values) if where(value, self.model_settings)]

    def named(self, places: list[int]) -> str:
        """The names of these values."""
        return f"{self.axis.name} {', '.join(self.axis.values[place].label or 'empty' for place in places)}"

    def compare(self, here: Where, there: Where) -> tuple[Estimate, str]:
        """The mean at some values minus that at others, also in words."""
        first, second = self.places(here), self.places(there)
        found = estimate(self.values[first].mean(axis=0) - self.values[second].mean(axis=0))
        summary = f"{self.named(first)} against {self.named(second)}: {_difference(self.measure, found)}"
        return found, summary

    def against(self, label: str) -> dict[str, Estimate]:
        """Each other value minus one, with intervals that hold for all of them together."""
        labels = [value.label for value in self.axis.values]
        place = labels.index(label)
        found = differences(self.values[place], np.delete(self.values, place, axis=0))
        return dict(zip([*labels[:place], *labels[place + 1 :]], found, strict=True))


def _by_first_known(measures: Sequence[Metrics], compare: Callable[[_Measured], Finding]) -> Decide:
    """Decide by the first of the measures that is known; if none is, the claim is undecided."""

    def decide(results: Results, model_settings: GenerationSettings) -> Finding:
        measure = next((each for each in measures if set(each) <= set(results.known_metrics)), None)
        if measure is None:
            names = " or ".join(_WORDS[each[0]] for each in measures)
            return Finding(word=UNDECIDED, summary=f"not measured of this model: {names}")
        place = results.setting_axes[-1]
        values = np.mean([results.units(name, (place,)) for name in measure], axis=0)
        return compare(
            _Measured(axis=results.axes[place], model_settings=model_settings, measure=measure, values=values)
        )

    return decide


def _word(low: float, high: float, size: int) -> str:
    if size < ENOUGH:
        return UNDECIDED
    return CONFIRMED if low > 0 else CONTRADICTED if high < 0 else UNDECIDED


def _difference(measure: Metrics, found: Estimate) -> str:
    words = _WORDS[measure[0]]
    if found.low == found.mean == found.high == 0:
        return f"{words} in none of {found.size} pairs another"
    if measure[0] in _SHARES:
        mean, low, high = (100 * each for each in found[:3])
        return f"{words} {mean:+.1f} points ({low:+.1f} to {high:+.1f})"
    return f"{words} {found.mean:+.3g} ({found.low:+.3g} to {found.high:+.3g})"


def _amount(measure: Metrics, value: float) -> str:
    return f"{100 * value:.3g} points" if measure[0] in _SHARES else f"{value:.2g}"


def _between(low: int, high: int) -> Where:
    return lambda value, model_settings: low <= number_of(value) <= high


def _own_guidance(value: Value, model_settings: GenerationSettings) -> bool:
    return number_of(value) == model_settings.guidance_scale


def _labelled(label: str) -> Where:
    return lambda value, model_settings: value.label == label


DETAILED, STRICT = _between(12, 17), _between(19, 25)

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="guidance near 1 costs quality", experiment="guidance",
        says="values near 1 may slightly compromise artistic quality",
        decide=more(QUALITY, _between(1, 1), _own_guidance, sign=-1),
    ),
    Claim(
        name="guidance of 12 to 17 brings details", experiment="guidance",
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
        name="quality comes by 15 to 25 steps", experiment="steps",
        says="high-quality images are notably observed between 15 and 25 steps",
        decide=more(QUALITY, _between(15, 25), _between(5, 8)),
    ),
    Claim(
        name="quality stays beyond 25 steps", experiment="steps",
        says="beyond this range further steps make no significant difference in quality",
        decide=steady(QUALITY, _between(40, 60), _between(25, 25)),
    ),
    Claim(
        name="the form changes beyond 25 steps", experiment="steps",
        says="but the form of the image undergoes repeated changes",
        decide=at_least(UNCONVERGED, VISIBLE, _between(25, 40)),
    ),
    Claim(
        name="negative prompts keep out what they name", experiment="faults",
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
            name=f"{name} is to be recommended", experiment="sampler",
            says="UniPC, Euler and DDPM are highly recommended",
            decide=recommended(QUALITY, name),
        )
        for name in ("UniPC", "Euler", "DDPM")
    ),
)  # fmt: skip
"""In the article's order."""
