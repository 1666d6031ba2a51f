"""The terms of a student's loss: the task, the teacher's prediction, the teacher's features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ssd1b.errors import InputError
from ssd1b.validation import Flag, Range, validated

Weight = Annotated[float, Range(0, 1e6)]

NORMAL = 1e-6


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights of the kinds of terms; the vendor's script has 1, 0.5 and 0.5.

    Attributes:
        task: weight of the error in the prediction (usually of the noise).
        output: weight of the difference from the teacher's prediction.
        features: weight of the sum of the differences from the teacher's features.
        normalised: divide each feature's term by the mean square of the teacher's feature, so that the
            largest ones do not dominate (LAPTOP-Diff, 2404.11098).
    """

    task: Weight = 1.0
    output: Weight = 0.5
    features: Weight = 0.5
    normalised: Flag = False

    def __post_init__(self) -> None:
        """Check combinations of fields."""
        if not self.task + self.output + self.features:
            raise InputError("all weights are 0: at least one must be positive")


def distillation_terms(
    weights: Weights,
    *,
    target: Tensor,
    predicted: Tensor,
    predicted_by_teacher: Tensor,
    features: Mapping[str, tuple[Tensor, Tensor]],
    sample_weights: Tensor,
) -> dict[str, Tensor]:
    """Compute the loss and its terms.

    Args:
        weights: of the kinds of terms.
        target: the model's target, ``[B, 4, H, W]``.
        predicted: the student's prediction.
        predicted_by_teacher: the teacher's prediction.
        features: the student's and the teacher's features, by the student's name for the module.
        sample_weights: weight of each image in all terms, ``[B]``. With min-SNR over the task alone (as in
            the vendor's script) the balance of the terms would change with the noise.

    Returns:
        ``loss``, ``task``, ``output``, ``features`` (their sum) and ``feature/NAME`` for each of them: means
        over the batch in float32, of which only ``loss`` applies the weights.
    """
    terms = {
        "task": _mean(_squared(predicted, target), sample_weights),
        "output": _mean(_squared(predicted, predicted_by_teacher), sample_weights),
    }
    each: dict[str, Tensor] = {}
    for name, (ours, theirs) in features.items():
        errors = _squared(ours, theirs)
        if weights.normalised:
            errors = errors / (theirs.detach().float().square().mean() + NORMAL)
        each[f"feature/{name}"] = _mean(errors, sample_weights)
    terms["features"] = sum(each.values(), start=terms["task"].new_zeros(()))
    loss = (
        weights.task * terms["task"] + weights.output * terms["output"] + weights.features * terms["features"]
    )
    return {"loss": loss, **terms, **each}


def _squared(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared difference of each image, ``[B]``; squares of float16 would overflow."""
    return (ours.float() - theirs.detach().float()).square().flatten(1).mean(dim=1)


def _mean(errors: Tensor, sample_weights: Tensor) -> Tensor:
    return (errors * sample_weights).mean()
