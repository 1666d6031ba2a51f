"""Prior preservation (DreamBooth, 2208.12242, section 3.3): what a model knew before, it still generates.

Either pictures of the subject's class are learned beside its own; or, without any pictures, the model is to
predict for prompts of the class what it predicted before the training.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.finetune.layers import AdaptedWeight
from ssd1b.models.text import Conditioning
from ssd1b.models.unet_inputs import UNetInputs
from ssd1b.training.batches import Batches, LatentBatch
from ssd1b.training.low_rank import LowRank
from ssd1b.training.objective import Example, Objective

Predict = Callable[..., Any]
"""A UNet, called with ``UNetInputs``."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """For each step a batch of the subject, and one of its class.

    Attributes:
        own: batches of the subject.
        prior: batches of the class.
    """

    own: Batches[LatentBatch]
    prior: Batches[LatentBatch]

    def __getitem__(self, step: int) -> tuple[LatentBatch, LatentBatch]:
        """Return both batches of a step."""
        return self.own[step], self.prior[step]


@dataclass(frozen=True, slots=True)
class Preservation:
    """Prompts for which the model is to predict what it did before the training.

    Attributes:
        prompts: their embeddings before the training, on the UNet's device.
        before: the model before the training.
        encode: encodes the prompts of these numbers with the encoders in training; None if they are frozen.
    """

    prompts: Conditioning
    before: Predict
    encode: Callable[[Tensor], Conditioning] | None = None

    def error(self, predict: Predict, example: Example) -> Tensor:
        """Return the weighted mean squared difference from the model before, at an example's noisy latents.

        Prompts are drawn with torch's global generator.
        """
        latents = example.inputs.latents
        drawn = torch.randint(len(self.prompts.embeds), (len(latents),))
        on_device = drawn.to(latents.device)

        def inputs(text: Conditioning) -> UNetInputs:
            embeds, pooled = (part.to(latents.dtype) for part in text)
            return example.inputs._replace(prompt_embeds=embeds, pooled_prompt_embeds=pooled)

        kept = inputs(Conditioning(*(part[on_device] for part in self.prompts)))
        with torch.no_grad():
            target = self.before(*kept).float()
        now = kept if self.encode is None else inputs(self.encode(drawn))
        return weighted_error(predict, Example(now, target, example.weights))


def weighted_error(predict: Predict, example: Example) -> Tensor:
    """Return the weighted mean squared error of a prediction.

    It is a mean over all places, whatever they weigh, so that the mean over micro-batches is that of the
    batch: an image of which less counts is learned less.
    """
    errors = (predict(*example.inputs).float() - example.target).square()
    if example.cell_weights is not None:
        errors = errors * example.cell_weights
    return (errors.flatten(1).mean(1) * example.weights).mean()


def loss_terms(
    objective: Objective,
    predict: Predict,
    batch: LatentBatch | tuple[LatentBatch, LatentBatch],
    preservation: Preservation | None,
    weight: float,
) -> dict[str, Tensor]:
    """Return the loss of a step, and its parts.

    Args:
        objective: adds noise, from torch's global generator.
        predict: the UNet in training.
        batch: of the subject, or one of the subject and one of its class.
        preservation: if the model is its own prior.
        weight: of the prior's loss.
    """
    own, prior = (batch, None) if isinstance(batch, LatentBatch) else batch
    example = objective(own)
    subject = weighted_error(predict, example)
    found = {"loss": subject}
    if prior is not None:
        found["prior"] = weighted_error(predict, objective(prior))
    if preservation is not None:
        found["preserved"] = preservation.error(predict, example)
    if priors := [each for name, each in found.items() if name != "loss"]:
        found |= {"subject": subject, "loss": subject + weight * sum(priors)}
    return found


@contextmanager
def without_adapters(unet: nn.Module) -> Generator[None, None, None]:
    """Switch the adapters of a UNet off."""
    adapters = [each for each in unet.modules() if isinstance(each, LowRank | AdaptedWeight)]
    for each in adapters:
        each.enabled = False
    try:
        yield
    finally:
        for each in adapters:
            each.enabled = True
