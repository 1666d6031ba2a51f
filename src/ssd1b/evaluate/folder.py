"""Evaluation of any model on a folder of captioned images, with the published metrics."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ssd1b.errors import InputError, NotFoundError
from ssd1b.evaluate.cost import unet_macs
from ssd1b.evaluate.distances import frechet_distance, kernel_distance
from ssd1b.evaluate.drawing import Drawn
from ssd1b.evaluate.published import Inception, find_scorers, inception_weights
from ssd1b.evaluate.statistics import Estimate, by_prompt, difference, estimate
from ssd1b.files import named, read_file
from ssd1b.images import open_picture
from ssd1b.layouts import ModelLayout
from ssd1b.picture_names import PICTURES, UNREAD, captions_by_picture
from ssd1b.validation import Text, check
from ssd1b.weights.files import first_few

_LONGEST_CAPTION = 2**20
"""The most bytes in a caption file."""


class Captioned(NamedTuple):
    """An image file and its caption, from the text file of the same stem in the same folder."""

    path: Path
    caption: str


def read_captions(folder: Path) -> list[Captioned]:
    """Read the captions of a folder's images, in the order of their names.

    Images without a caption, and those in an unsupported format, are skipped with a warning.

    Raises:
        InputError: no such folder, no captioned image in it, or a caption that is empty or not text.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder")
    files = sorted(folder.iterdir())
    texts = captions_by_picture(files)
    found = [Captioned(path, _caption(text)) for path, text in texts.items()]
    if not found:
        raise InputError(
            f"{folder}: no image ({', '.join(PICTURES)}) with a caption in a .txt file of the same name"
        )
    without = [path.name for path in files if path.suffix.lower() in PICTURES and path not in texts]
    unread = [path.name for path in files if path.suffix.lower() in UNREAD]
    for names, why in ((without, "without a caption"), (unread, "in an unsupported format")):
        if names:
            warnings.warn(f"{len(names)} images {why} are skipped: {first_few(names)}", stacklevel=2)
    return found


def _caption(path: Path) -> str:
    try:
        caption = read_file(path, most=_LONGEST_CAPTION).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{named(path)}: not UTF-8 text: {error.reason}") from error
    if not caption:
        raise InputError(f"{named(path)}: the caption is empty")
    return check(f"the caption in {named(path)}", caption, Text)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderEvaluation:
    """A model's metrics on a folder of captioned images.

    Attributes:
        pictures: one for each caption and seed, seeds varying fastest, ``[height, width, 3]``.
        seeds: images per caption.
        values: one value per image, by the names of ``SCORERS``.
        distances: "FID" and "KID" from the folder's images.
        missing: the metrics that are not available, with the reason.
        seconds: median seconds per image.
        macs: multiply-accumulate operations of the UNet passes of one image. Each pass is counted in full, as
            in published figures, although keys and values of the text are computed only once.
    """

    pictures: list[NDArray[np.uint8]]
    seeds: int
    values: dict[str, NDArray[np.float64]]
    distances: dict[str, float]
    missing: dict[str, str]
    seconds: float
    macs: float

    def estimates(self) -> dict[str, Estimate]:
        """Estimate the mean of every score."""
        return {name: estimate(by_prompt(values, self.seeds)) for name, values in self.values.items()}

    def facts(self) -> dict[str, Any]:
        """Everything except the images, as JSON."""
        return {
            "scores": {name: each._asdict() for name, each in self.estimates().items()},
            "distances": self.distances,
            "missing": self.missing,
            "pictures": len(self.pictures),
            "seconds": self.seconds,
            "unet_gmacs": self.macs / 1e9,
        }


def evaluate_folder(
    pairs: Sequence[Captioned],
    drawn: Sequence[Drawn],
    layout: ModelLayout,
    *,
    device: torch.device,
    offline: bool,
) -> FolderEvaluation:
    """Compare images that were generated for a folder's captions with its images.

    Args:
        pairs: the result of ``read_captions``.
        drawn: images of each caption with the same seeds, seeds varying fastest.
        layout: of the model that generated them.
        device: where the metrics' networks run.
        offline: use only metric weights in the hub's cache.
    """
    seeds = len(drawn) // len(pairs)
    images = [each.image for each in drawn]
    scorers, missing = find_scorers(device, offline=offline)
    captions = [pair.caption for pair in pairs for _ in range(seeds)]
    values = {name: scorer(images, captions) for name, scorer in scorers.items()}
    width, height = images[0].size
    factor, passes = layout.vae.factor, sum(each.passes for each in drawn)
    return FolderEvaluation(
        pictures=[np.asarray(image) for image in images],
        seeds=seeds,
        values=values,
        distances=_distances(pairs, images, device, missing),
        missing=missing,
        seconds=float(np.median([each.seconds for each in drawn])),
        macs=unet_macs(layout.unet, height // factor, width // factor) * passes / len(images),
    )


def compare_folders(first: FolderEvaluation, second: FolderEvaluation) -> Mapping[str, Estimate]:
    """Estimate by how much the second exceeds the first in each score, paired by caption and noise."""
    return {
        name: difference(
            by_prompt(first.values[name], first.seeds), by_prompt(second.values[name], second.seeds)
        )
        for name in first.values
        if name in second.values
    }


def _distances(
    pairs: Sequence[Captioned],
    images: Sequence[Image.Image],
    device: torch.device,
    missing: dict[str, str],
) -> dict[str, float]:
    """Compute FID and KID; if they are not available, add the reason to ``missing``."""
    try:
        if len(pairs) < 2:
            raise InputError("a distance needs at least 2 images")
        inception = Inception(inception_weights(), device)
    except InputError as error:
        missing["FID, KID"] = str(error)
        return {}
    theirs = inception([open_picture(pair.path) for pair in pairs])
    ours = inception(images)
    return {"FID": frechet_distance(ours, theirs), "KID": kernel_distance(ours, theirs)}
