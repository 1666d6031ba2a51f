"""Fine-tune a model on captioned images."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssd1b.distill.teacher import find_or_describe
from ssd1b.errors import InputError
from ssd1b.finetune.cost import FinetunePlan, plan_finetune
from ssd1b.finetune.data import OWN, check_data, data_of, passes
from ssd1b.finetune.run import check_model, finetune
from ssd1b.finetune.settings import make_settings
from ssd1b.model import Model
from ssd1b.training.data.batches import scan_data


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
    device: str | None = None, prediction: str | None = None,
) -> FinetunePlan:  # fmt: skip
    """Plan a fine-tuning, without downloading, encoding or writing anything.

    If the settings name data, their images and captions are checked as a run does.

    Args:
        model: a model on disk, or the name of a layout if there are no weights.
        file: as in ``finetune_model``.
        given: as in ``finetune_model``.
        preset: as in ``finetune_model``.
        device: to estimate for; None for the fastest one.
        prediction: as in ``finetune_model``.

    Raises:
        InputError: no such model, a setting is wrong, or the data are unusable.
    """
    layout, found = find_or_describe(model)
    settings = make_settings(file, given, size=layout.size, preset=preset)
    if found is not None:
        found = found if prediction is None else Model.find(model, offline=True, prediction=prediction)
        check_model(found)
        if settings.zero_terminal_snr:
            found = found.with_zero_snr()
    images = None
    if settings.data.all_sources:
        with TemporaryDirectory() as cache:
            read = partial(scan_data, cache=Path(cache), captions=settings.captions)
            scanned = {report: read(data) for report, data in data_of(settings).items()}
            check_data(scanned, settings)
        settings = settings.for_images(scanned[OWN].seen)
        images = passes(settings, scanned[OWN])
    elif settings.epochs is not None:
        raise InputError("epochs (--epochs) are passes over images: name them, such as --data pictures")
    return plan_finetune(layout, found, settings, device, images)
