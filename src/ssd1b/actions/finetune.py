"""Fine-tune a model on captioned images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd1b.distill.teacher import find_or_describe
from ssd1b.finetune.cost import FinetunePlan, plan_finetune
from ssd1b.finetune.run import finetune
from ssd1b.finetune.settings import make_settings
from ssd1b.model import Model
from ssd1b.training.data.batches import count_images


def finetune_model(
    model: str, file: str | None, given: Mapping[str, Any], out: Path, *, preset: str | None = None,
    offline: bool = False, prediction: str | None = None, **options: Any,
) -> list[Path]:  # fmt: skip
    """Fine-tune a model.

    Args:
        model: a model's name.
        file: TOML file of settings, see ``finetune.settings.make_settings``.
        given: settings over those of the file.
        out: folder of the run.
        preset: a name of ``finetune.presets.PRESETS``, below the file.
        offline: never use the network.
        prediction: what the model predicts, "epsilon" or "v", if its files do not say.
        options: of ``finetune.run.finetune``.

    Returns:
        The files and folders written.

    Raises:
        InputError: as ``finetune.run.finetune``.
    """
    found = Model.find(model, offline=offline, prediction=prediction)
    settings = make_settings(file, given, size=found.layout.size, preset=preset)
    return finetune(found, settings, out, **options)


def plan_finetuning(
    model: str, file: str | None, given: Mapping[str, Any], *, preset: str | None = None,
    device: str | None = None,
) -> FinetunePlan:  # fmt: skip
    """Plan a fine-tuning, without downloading anything. Images are counted if the settings have epochs.

    Args:
        model: a model on disk, or the name of a layout if there are no weights.
        file: as in ``finetune_model``.
        given: as in ``finetune_model``.
        preset: as in ``finetune_model``.
        device: to estimate for; None for the fastest one.

    Raises:
        InputError: no such model, or a setting is wrong.
    """
    layout, found = find_or_describe(model)
    settings = make_settings(file, given, size=layout.size, preset=preset)
    if settings.epochs is not None:
        settings = settings.for_images(count_images(settings.data))
    return plan_finetune(layout, found, settings, device)
