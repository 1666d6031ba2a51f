"""Batches of captioned images: the entry point, and the settings."""

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
    """What a UNet is trained on.

    Attributes:
        path: of the source, see ``open_source``.
        size: side in pixels of a square picture; others have about as many pixels.
        multiple: of which the sides of all buckets are multiples.
        max_ratio: of the longer side to the shorter one in the longest bucket.
        crop: "centre", or "random": at a place drawn once for each picture.
        min_side: pixels that a picture's shorter side must have; None is a quarter of ``size``. Small
            pictures are enlarged, and the UNet is told (2307.01952, section 2.2).
        caption_dropout: share of pictures learned without their caption (2207.12598).
        max_unusable: share of pictures that may be unusable before the training refuses to begin.
        cache_captions: keep the captions' embeddings on disk, too; else each step encodes its captions.
        dtype: number format of what is kept.
        image_column: of tables.
        caption_column: of tables and JSON; None is "text" or "caption".
        split: of a saved dataset that has several.
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
        """Check what no field can say by itself."""
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
        caption_dropout: share of images learned without their caption.
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
        """Read a batch, all of one bucket; its text is embeddings where they are cached, else tokens.

        Raises:
            InputError: a cache was damaged since the start.
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

    Several processes may call this at once; it may be stopped and called again.

    Args:
        settings: the source, and how it is used.
        vae: encodes the images, on its device and in its number format.
        text: encodes the captions, likewise.
        cache: folder for latents and embeddings. They are addressed by content, so trainings may share it.
        report: JSON file for the unusable examples, written even if there are too many.
        batch_size: number of images in each batch.
        seed: of crops, order, captions and caption dropout.

    Raises:
        InputError: there is no such source, or more of it is unusable than the settings allow.
    """
    check_renewable(report)
    columns = Columns(image=settings.image_column, caption=settings.caption_column, split=settings.split)
    dtype = DTYPES[settings.dtype]
    examples = open_source(settings.path, columns, cache=cache)
    scanned, found = scan(examples, min_side=settings.min_side or settings.size // 4)
    _judge(found, settings, report)

    pictures = _placed(scanned, settings, seed)
    latents = latents_cache(cache, vae, dtype)
    troubles = encode_pictures(pictures, vae, latents, dtype)
    for picture in pictures:
        if picture.key in troubles:
            found.note(picture.scanned.example.key, troubles[picture.key])
    _judge(found, settings, report)

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
    _write(report, batches.facts())
    if found.count:
        warnings.warn(f"{found}; the list is in {named(report)}", stacklevel=2)
    return batches


def _judge(found: Report, settings: DataSettings, path: Path) -> None:
    """Raise ``InputError`` if too much is unusable, and write the report."""
    try:
        found.check(settings.max_unusable)
    except InputError:
        _write(path, found.facts())
        raise


def _write(path: Path, facts: dict[str, Any]) -> None:
    with renewing(path) as aside:
        write_json(aside, facts)


def _placed(scanned: Sequence[Scanned], settings: DataSettings, seed: int) -> list[Placed]:
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
    """Return the images of each bucket that has any, from tall to wide."""
    groups: dict[Any, list[Placed]] = {}
    for picture in pictures:
        groups.setdefault(picture.placement.bucket, []).append(picture)
    return [groups[bucket] for bucket in sorted(groups)]
