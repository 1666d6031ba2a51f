"""What any model's pictures are worth beside pictures that people captioned: the published metrics."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssd1b.errors import InputError, NotFoundError
from ssd1b.evaluate.cost import counted, unet_macs
from ssd1b.evaluate.distances import frechet_distance, kernel_distance
from ssd1b.evaluate.drawing import draw_captions
from ssd1b.evaluate.published import Inception, find_scorers, inception_weights
from ssd1b.evaluate.statistics import Estimate, by_prompt, difference, estimate
from ssd1b.files import named, read_file
from ssd1b.images import open_picture
from ssd1b.picture_names import PICTURES, UNREAD, captions_by_picture
from ssd1b.pipeline import Pipeline
from ssd1b.validation import Text, check
from ssd1b.weights.files import first_few

_LONGEST_CAPTION = 2**20
"""Bytes of a caption's file."""


class Captioned(NamedTuple):
    """A picture's file and its caption, the text file of the same stem beside it."""

    path: Path
    caption: str


def captioned(folder: Path) -> list[Captioned]:
    """Read the captions of a folder's pictures, in the order of their names.

    Pictures without a caption, and those of a kind that is not read, are left out with a warning.

    Raises:
        InputError: no folder, no captioned picture in it, or a caption that is empty or no text.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder")
    files = sorted(folder.iterdir())
    texts = captions_by_picture(files)
    found = [Captioned(path, _caption(text)) for path, text in texts.items()]
    if not found:
        raise InputError(f"{folder}: no picture ({', '.join(PICTURES)}) with its caption in a .txt beside it")
    without = [path.name for path in files if path.suffix.lower() in PICTURES and path not in texts]
    unread = [path.name for path in files if path.suffix.lower() in UNREAD]
    for names, why in ((without, "without a caption"), (unread, "of a kind that is not read")):
        if names:
            warnings.warn(f"{len(names)} pictures {why} are left out: {first_few(names)}", stacklevel=2)
    return found


def _caption(path: Path) -> str:
    try:
        caption = read_file(path, most=_LONGEST_CAPTION).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{named(path)}: no text to be read: {error.reason}") from error
    if not caption:
        raise InputError(f"{named(path)}: an empty caption")
    return check(f"the caption in {named(path)}", caption, Text)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderEvaluation:
    """A model's figures over the captions of a folder.

    Attributes:
        pictures: one for each caption and seed, seeds fastest, ``[height, width, 3]``.
        seeds: pictures of each caption.
        values: by the names of ``SCORERS``, one value for each picture.
        distances: "FID" and "KID", from the folder's own pictures.
        missing: each metric that was left out, with the reason.
        seconds: of one picture, median.
        macs: multiply-accumulate operations of the UNet's passes for one picture, each counted whole, as
            published figures do, although what is read of the text is computed once.
    """

    pictures: list[NDArray[np.uint8]]
    seeds: int
    values: dict[str, NDArray[np.float64]]
    distances: dict[str, float]
    missing: dict[str, str]
    seconds: float
    macs: float

    def estimates(self) -> dict[str, Estimate]:
        """Every score with its interval."""
        return {name: estimate(by_prompt(values, self.seeds)) for name, values in self.values.items()}

    def facts(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        return {
            "scores": {name: each._asdict() for name, each in self.estimates().items()},
            "distances": self.distances,
            "missing": self.missing,
            "pictures": len(self.pictures),
            "seconds": self.seconds,
            "unet_gmacs": self.macs / 1e9,
        }


def evaluate_folder(
    pipeline: Pipeline, pairs: Sequence[Captioned], *, seeds: int, offline: bool, **settings: Any
) -> FolderEvaluation:
    """Draw a folder's captions and compare with its pictures.

    Args:
        pipeline: the model.
        pairs: as ``captioned`` gives them.
        seeds: pictures of each caption.
        offline: take the metrics' weights from the hub's cache only.
        **settings: any field of ``GenerationSettings`` but prompt and seed.
    """
    tasks = [(pair.caption, seed) for pair in pairs for seed in range(seeds)]
    with counted(pipeline.unet) as batches:
        drawn = list(draw_captions(pipeline, tasks, batch_size=1, **settings))
    images = [image for image, _ in drawn]
    scorers, missing = find_scorers(pipeline.device, offline=offline)
    values = {name: scorer(images, [caption for caption, _ in tasks]) for name, scorer in scorers.items()}
    width, height = images[0].size
    factor = pipeline.layout.vae.factor
    return FolderEvaluation(
        pictures=[np.asarray(image) for image in images],
        seeds=seeds,
        values=values,
        distances=_distances(pipeline, pairs, images, missing),
        missing=missing,
        seconds=float(np.median([seconds for _, seconds in drawn])),
        macs=unet_macs(pipeline.layout.unet, height // factor, width // factor) * sum(batches) / len(images),
    )


def compare_folders(first: FolderEvaluation, second: FolderEvaluation) -> Mapping[str, Estimate]:
    """By how much the second exceeds the first, score by score, paired by caption and noise."""
    both = [name for name in first.values if name in second.values]
    return {
        name: difference(
            by_prompt(first.values[name], first.seeds), by_prompt(second.values[name], second.seeds)
        )
        for name in both
    }


def _distances(
    pipeline: Pipeline, pairs: Sequence[Captioned], images: Sequence[Image.Image], missing: dict[str, str]
) -> dict[str, float]:
    """FID and KID; what cannot be measured goes to ``missing``."""
    try:
        if len(pairs) < 2:
            raise InputError("a distance needs at least 2 pictures")
        inception = Inception(inception_weights(), pipeline.device)
    except InputError as error:
        missing["FID, KID"] = str(error)
        return {}
    theirs = inception([open_picture(pair.path) for pair in pairs])
    ours = inception(images)
    return {"FID": frechet_distance(ours, theirs), "KID": kernel_distance(ours, theirs)}
