"""The images that a fine-tuning reads: those to learn, those of the class, and those that are held out."""

from collections.abc import Mapping

from ssd1b.finetune.inversion import check_captions
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.numerals import counted
from ssd1b.training.data.batches import DataSettings, PictureBatches, ScannedData

OWN, OF_CLASS, HELD_OUT = "data.json", "prior.json", "validation.json"
"""Reports on the images to learn, on those of the class, and on those that are held out."""


def data_of(settings: FinetuneSettings) -> dict[str, DataSettings]:
    """Return the settings of all data of a run, by the names of their reports."""
    data, of_class, held_out = settings.data, settings.prior, settings.validation
    found = {OWN: data}
    if of_class is not None:
        found[OF_CLASS] = data.of_others(of_class)
    if held_out is not None:
        found[HELD_OUT] = data.held_out(held_out)
    return found


def check_data(scanned: Mapping[str, ScannedData], settings: FinetuneSettings) -> None:
    """Check that the images to learn have what the settings ask for.

    Raises:
        InputError: no image has a mask, or no caption the new word.
    """
    scanned[OWN].check_masks()
    if settings.token is not None:
        check_captions(scanned[OWN].captions, settings.token)


def passes(settings: FinetuneSettings, data: PictureBatches | ScannedData) -> str:
    """Say how many images are learned, and how often."""
    repeated = f" ({data.seen} with repeats)" if data.seen != data.different else ""
    train = settings.train
    count = train.steps * train.batch_size / data.seen
    images, steps = counted(data.different, "image"), counted(train.steps, "step")
    return f"{images}{repeated}: {steps} of {train.batch_size}, {count:.3g} pass{'es' * (count != 1)}"
