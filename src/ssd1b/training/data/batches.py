"""Batches of captioned images: settings and entry point."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from ssd1b.errors import InputError
from ssd1b.files import named
from ssd1b.models.text import Conditioning, TextEncoders, Tokens
from ssd1b.models.vae import VAE
from ssd1b.runtime import DTYPES
from ssd1b.saving import check_renewable, renewing
from ssd1b.training.batches import LatentBatch
from ssd1b.training.data.buckets import Crop, buckets_for, nearest, place
from ssd1b.training.data.cache import Cache, latents_cache, texts_cache
from ssd1b.training.data.encoding import (
    Placed,
    as_prompts,
    encode_captions,
    encode_pictures,
    read,
    read_captions,
)
from ssd1b.training.data.examples import Columns
from ssd1b.training.data.order import Order
from ssd1b.training.data.scan import Report, Scanned, scan
from ssd1b.training.data.sources import open_source
from ssd1b.validation import Flag, Name, OneOf, Range, validated
from ssd1b.weights.files import write_json


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Settings of a UNet's training data.

    Attributes:
        path: path of the source, see ``open_source``.
        size: side of a square image in pixels; other buckets have about as many pixels.
        multiple: the sides of all buckets are multiples of this.
        max_ratio: largest ratio of a bucket's longer side to the shorter one.
        crop: "centre", or "random" for a position drawn once for each image.
        min_side: smallest length of an image's shorter side in pixels; None is a quarter of ``size``. Small
            images are enlarged, and micro-conditioning has their original size (2307.01952, section 2.2).
        caption_dropout: share of images without their caption (2207.12598).
        max_unusable: largest share of unusable images with which a training starts.
        cache_captions: cache the captions' embeddings on disk, too; otherwise each step encodes its captions.
        dtype: number format of the cache.
        image_column: column of the images in tables.
        caption_column: column of the captions in tables and JSON; None is "text" or "caption".
        split: of a saved dataset with several splits.
    """

    path: Name
    size: Annotated[int, Range(64, 4096, multiple_of=8)] = 1024
    multiple: Annotated[int, Range(8, 1024, multiple_of=8)] = 64
    max_ratio: Annotated[float, Range(1, 16)] = 4.0
    crop: Crop = "centre"
    min_side: Annotated[int, Range(1, 65_536)] | None = None
    caption_dropout: Annotated[float, Range(0, 1)] = 0.1
    max_unusable: Annotated[float, Range(0, 1)] = 0.1
    cache_captions: Flag = True
    dtype: Annotated[str, OneOf("dtype", DTYPES)] = "float16"
    image_column: Name = "image"
    caption_column: Name | None = None
    split: Name = "train"

    def __post_init__(self) -> None:
        """Check combinations of fields."""
        buckets_for(self.size, multiple=self.multiple, max_ratio=self.max_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureBatches:
    """The batch of each step, read from the caches; a pure function of the step's number.

    Attributes:
        pictures: images of each bucket.
        order: of the batches.
        latents: cache of the latents.
        texts: cache of the captions' embeddings; None if captions are encoded in each step.
        text: encoders, of which only the tokenizers are used, and only if ``texts`` is None.
        caption_dropout: share of images without their caption.
        report: of unusable examples.
    """

    pictures: Sequence[Sequence[Placed]]
    order: Order
    latents: Cache
    texts: Cache | None
    text: TextEncoders | None
    caption_dropout: float
    report: Report

    def __getitem__(self, step: int) -> LatentBatch:
        """Read the batch of a step, of one bucket; its text is embeddings if these are cached, else tokens.

        Raises:
            InputError: a cache has been damaged since the start.
        """
        bucket, indices = self.order[step]
        chosen = [self.pictures[bucket][index] for index in indices]
        rng = np.random.default_rng((self.order.seed, 2, step))
        captions = [each.scanned.captions[rng.integers(len(each.scanned.captions))] for each in chosen]
        has_caption = rng.random(len(chosen)) >= self.caption_dropout
        return LatentBatch(
            latents=torch.stack([read(self.latents, picture.key)["latents"] for picture in chosen]),
            text=self._text(captions),
            time_ids=torch.tensor([picture.placement.time_ids for picture in chosen]),
            has_caption=torch.from_numpy(has_caption),
        )

    def _text(self, captions: Sequence[str]) -> Conditioning | list[Tokens]:
        if self.texts is not None:
            return read_captions(captions, self.texts)
        assert self.text is not None
        return self.text.tokenize(as_prompts(captions))

    def facts(self) -> dict[str, Any]:
        """Return the unusable examples and the number of images in each bucket, for JSON."""
        buckets = {
            f"{few[0].placement.bucket.width}x{few[0].placement.bucket.height}": len(few)
            for few in self.pictures
        }
        return {**self.report.facts(), "buckets": buckets}


def open_data(
    settings: DataSettings,
    *,
    vae: VAE,
    text: TextEncoders,
    cache: Path,
    report: Path,
    batch_size: int,
    seed: int,
) -> PictureBatches:
    """Scan a source, encode what the caches lack, and return its batches.

    Several processes may call this at once, and it may be interrupted and called again.

    Args:
        settings: of the data.
        vae: encodes the images, on its device and in its number format.
        text: encodes the captions, likewise.
        cache: folder for latents and embeddings. They are addressed by content, so trainings may share it.
        report: JSON file for the unusable examples, written even if there are too many.
        batch_size: number of images in each batch.
        seed: of crops, order, captions and caption dropout.

    Raises:
        InputError: there is no such source, or too many of its examples are unusable.
    """
    check_renewable(report)
    columns = Columns(image=settings.image_column, caption=settings.caption_column, split=settings.split)
    dtype = DTYPES[settings.dtype]
    examples = open_source(settings.path, columns, cache=cache)
    scanned, found = scan(examples, min_side=settings.min_side or settings.size // 4)
    _check_report(found, settings, report)

    pictures = _place_all(scanned, settings, seed)
    latents = latents_cache(cache, vae, dtype)
    troubles = encode_pictures(pictures, vae, latents, dtype)
    for picture in pictures:
        if picture.key in troubles:
            found.note(picture.scanned.example.key, troubles[picture.key])
    _check_report(found, settings, report)

    pictures = [picture for picture in pictures if picture.key not in troubles]
    texts = texts_cache(cache, text, dtype) if settings.cache_captions else None
    if texts is not None:
        encode_captions((each for p in pictures for each in p.scanned.captions), text, texts, dtype)
    by_bucket = _by_bucket(pictures)
    batches = PictureBatches(
        pictures=by_bucket,
        order=Order(tuple(map(len, by_bucket)), batch_size, seed),
        latents=latents,
        texts=texts,
        text=None if texts is not None else text,
        caption_dropout=settings.caption_dropout,
        report=found,
    )
    _write_report(report, batches.facts())
    if found.count:
        warnings.warn(f"{found}; the list is in {named(report)}", stacklevel=2)
    return batches


def _check_report(found: Report, settings: DataSettings, path: Path) -> None:
    """Raise ``InputError`` if too many examples are unusable, after writing the report."""
    try:
        found.check(settings.max_unusable)
    except InputError:
        _write_report(path, found.facts())
        raise


def _write_report(path: Path, facts: dict[str, Any]) -> None:
    with renewing(path) as aside:
        write_json(aside, facts)


def _place_all(scanned: Sequence[Scanned], settings: DataSettings, seed: int) -> list[Placed]:
    buckets = buckets_for(settings.size, multiple=settings.multiple, max_ratio=settings.max_ratio)
    return [
        Placed(
            scanned=each,
            placement=place(
                each.size, nearest(buckets, *each.size), crop=settings.crop, seed=(seed, int(each.digest, 16))
            ),
        )
        for each in scanned
    ]


def _by_bucket(pictures: Sequence[Placed]) -> list[list[Placed]]:
    """Group images by bucket, from tall to wide."""
    groups: dict[Any, list[Placed]] = {}
    for picture in pictures:
        groups.setdefault(picture.placement.bucket, []).append(picture)
    return [groups[bucket] for bucket in sorted(groups)]
