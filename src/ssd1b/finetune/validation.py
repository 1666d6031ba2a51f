"""Validation during a run: the loss on held-out images, and sample images.

Overfitting is reported, and the best result so far is kept.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.controls import Control
from ssd1b.distill.validation import make_sample_validator
from ssd1b.files import open_regular
from ssd1b.finetune.controlnet import controlling
from ssd1b.finetune.networks import Networks
from ssd1b.finetune.prior import weighted_error
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.models.vae import VAE
from ssd1b.training.batches import Batches, LatentBatch
from ssd1b.training.loop import Validate
from ssd1b.training.objective import Objective
from ssd1b.training.processes import Group
from ssd1b.weights.files import write_tensors

BEST = "best.safetensors"

LOSS = "validation_loss"
"""Name of the loss in the log."""

_BATCHES = 8
_RISES = 3
"""Validations in a row above the best one after which a run is said to overfit."""


def make_drawing(
    model: Model, settings: FinetuneSettings, vae: VAE, text: TextEncoders, controls: Sequence[Control] = ()
) -> Validate:
    """Return a validation that generates the settings' samples.

    Text encoders, the new word's vectors and the ControlNet, if they learn, are those of the moment.

    Args:
        model: that is trained, for its schedule and its settings.
        settings: of the run.
        vae: of the model.
        text: of the model.
        controls: of each sample, for the ControlNet in training.
    """

    def draw(networks: Networks, step: int, embeddings: Sequence[str] = ()) -> Mapping[str, float | Tensor]:
        unet, control = networks.unet, networks.controlnet
        validate = make_sample_validator(
            model, settings.samples, vae, networks.text_encoders(text), embeddings=embeddings,
            controls=controls, controlling=control and controlling(control, model, vae.device, unet.dtype),
        )  # fmt: skip
        return validate(unet, step)

    def validate(networks: Any, step: int) -> Mapping[str, float | Tensor]:
        if settings.token is None:
            return draw(networks, step)
        with TemporaryDirectory() as folder:
            path = Path(folder, settings.embedding_file)
            write_tensors(path, networks.word, {})
            return draw(networks, step, [f"{path}:{settings.token}"])

    return validate


def make_loss_validator(
    objective: Objective,
    batches: Batches[LatentBatch],
    log: Path,
    group: Group,
    keep: Callable[[Any, int], object] | None,
) -> Validate:
    """Return a validation of the loss with the same images, noise and timesteps each time.

    It keeps the model with the lowest loss so far, and warns once when the loss has been above its minimum
    three times in a row.

    Args:
        objective: of the training.
        batches: held-out images.
        log: the run's ``log.jsonl``, from which a resumed run knows the losses before.
        group: the processes of the run, which all call this.
        keep: writes the model of a step; None to keep none.
    """
    losses: dict[int, float] = {}
    warned = False

    def validate(networks: Any, step: int) -> dict[str, float]:
        nonlocal warned
        losses.update(losses or group.decide(lambda: losses_in(log)))
        total = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for number in range(_BATCHES):
                batch = networks.encoded(batches[number], objective.dtype)
                predict = networks.predictor(batch.controls, objective.dtype)
                total = total + weighted_error(predict, objective(batch))
        # Processes may round differently, so the first one decides.
        losses[step] = group.decide(lambda: float(total) / _BATCHES)
        best = best_step(losses)
        if best == step and keep is not None:
            keep(networks, step)
        if not warned and best is not None and sum(other > best for other in losses) >= _RISES:
            warned = True
            advice = f"train again with --steps {best}" if keep is None else f"{BEST} is that of step {best}"
            warnings.warn(
                f"the validation loss was lowest after step {best} and is higher since: the model overfits; "
                f"{advice}",
                stacklevel=2,
            )
        return {LOSS: losses[step]}

    return validate


def best_step(losses: Mapping[int, float]) -> int | None:
    """Return the first step with the lowest loss; None if none is finite. Step 0 is the untrained model."""
    finite = {step: loss for step, loss in losses.items() if step > 0 and math.isfinite(loss)}
    return min(finite, key=lambda step: finite[step], default=None)


def losses_in(log: Path) -> dict[int, float]:
    """Read the validation losses of a run by their steps; a loss that was not finite is NaN."""
    if not log.exists():
        return {}
    with open_regular(log) as file:
        rows = [json.loads(line) for line in file]
    return {row["step"]: math.nan if row[LOSS] is None else row[LOSS] for row in rows if LOSS in row}


def together(checks: Sequence[Validate]) -> Validate | None:
    """Combine validations; None if there are none."""

    def validate(networks: nn.Module, step: int) -> dict[str, float | Tensor]:
        return {name: value for check in checks for name, value in check(networks, step).items()}

    return validate if checks else None
