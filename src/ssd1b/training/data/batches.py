"""Batches of captioned images: settings and entry point."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ssd1b.embeddings import Words
from ssd1b.errors import ConflictError, InputError, shown
from ssd1b.files import named
from ssd1b.models.text import Conditioning, TextEncoders, Tokens
from ssd1b.models.vae import VAE
from ssd1b.numerals import counted
from ssd1b.runtime import DTYPES
from ssd1b.saving import check_renewable, renewing
from ssd1b.training.batches import LatentBatch
from ssd1b.training.data.buckets import Crop, buckets_for, nearest, place
from ssd1b.training.data.cache import Cache, controls_cache, latents_cache, masks_cache, texts_cache
from ssd1b.training.data.captions import Variation, variants, varied, with_trigger
from ssd1b.training.data.encoding import (
    Placed,
    as_prompts,
    encode_captions,
    encode_controls,
    encode_masks,
    encode_pictures,
    read,
    read_captions,
)
from ssd1b.training.data.examples import Columns
from ssd1b.training.data.order import Order
from ssd1b.training.data.pictures import digest_of
from ssd1b.training.data.scan import Report, Scanned, scan
from ssd1b.training.data.sources import ALPHA, BESIDE, EDGES, Source, open_sources
from ssd1b.validation import Flag, Items, Name, OneOf, Range, validated
from ssd1b.weights.files import first_few, read_json, write_json

_LEAST_KEPT = 0.5
"""Share of an image that the crop leaves without a warning."""

_MOST_SEEN = 2**24
"""Largest number of images in a pass, each as often as it is repeated."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Settings of a UNet's training data.

    Attributes:
        path: path of the source, see ``open_source``.
        sources: several sources instead of ``path``. Their own ``trigger``, ``masks`` and ``controls``
            replace those below.
        size: side of a square image in pixels; other buckets have about as many pixels.
        multiple: the sides of all buckets are multiples of this.
        max_ratio: largest ratio of a bucket's longer side to the shorter one.
        crop: "centre", or "random" for a position drawn once for each image.
        flip: learn half of the images mirrored, drawn anew in each step; not for subjects with two different
            sides, or with text.
        min_side: smallest length of an image's shorter side in pixels; None is a quarter of ``size``. Small
            images are enlarged, and micro-conditioning has their original size (2307.01952, section 2.2).
        masks: where the loss counts: "beside" takes ``NAME.mask.png`` beside the image, "alpha" the opacity
            of the image, anything else is a folder with masks of the images' names. Images without a mask
            count everywhere. None is no masks.
        unmasked_weight: smallest weight of the loss at any place of an image with a mask.
        controls: what a ControlNet learns to follow: "beside" takes ``NAME.control.png`` beside the image, or
            ``control_column`` of a table; "edges" the image's own edges (``edges.canny``), anything else is a
            folder with control images of the images' names. An image without its control image is unusable.
            None is no controls.
        caption_dropout: share of images without their caption (2207.12598).
        trigger: text in front of each caption that does not contain it.
        caption_lines: each line of a caption is a caption of its own, and one is drawn in each step.
        shuffle_captions: shuffle the tags of captions, the parts between commas.
        keep_tokens: number of tags at the beginning of each caption that are never moved or dropped.
        tag_dropout: share of the other tags that are left out, drawn for each tag.
        caption_variants: number of variants of each caption that are encoded for ``shuffle_captions`` and
            ``tag_dropout``; one is drawn in each step. Without ``cache_captions`` each step has a new one.
        max_unusable: largest share of unusable images with which a training starts.
        cache_captions: cache the captions' embeddings on disk, too; otherwise each step encodes its captions.
        dtype: number format of the cache.
        image_column: column of the images in tables.
        caption_column: column of the captions in tables and JSON; None is "text" or "caption".
        control_column: column of the control images in tables, and of their names in ``metadata.jsonl``.
        split: of a saved dataset with several splits.
    """

    path: Name | None = None
    sources: Annotated[tuple[Source, ...], Items(0, 64)] = ()
    size: Annotated[int, Range(64, 4096, multiple_of=8)] = 1024
    multiple: Annotated[int, Range(8, 1024, multiple_of=8)] = 64
    max_ratio: Annotated[float, Range(1, 16)] = 4.0
    crop: Crop = "centre"
    flip: Flag = False
    min_side: Annotated[int, Range(1, 65_536)] | None = None
    masks: Name | None = None
    unmasked_weight: Annotated[float, Range(0, 1)] = 0.1
    controls: Name | None = None
    caption_dropout: Annotated[float, Range(0, 1)] = 0.1
    trigger: Name | None = None
    caption_lines: Flag = False
    shuffle_captions: Flag = False
    keep_tokens: Annotated[int, Range(0, 1000)] = 0
    tag_dropout: Annotated[float, Range(0, 1)] = 0.0
    caption_variants: Annotated[int, Range(1, 1000)] = 8
    max_unusable: Annotated[float, Range(0, 1)] = 0.1
    cache_captions: Flag = True
    dtype: Annotated[str, OneOf("dtype", DTYPES)] = "float16"
    image_column: Name = "image"
    caption_column: Name | None = None
    control_column: Name = "conditioning_image"
    split: Name = "train"

    def __post_init__(self) -> None:
        """Check combinations of fields."""
        buckets_for(self.size, multiple=self.multiple, max_ratio=self.max_ratio)
        if self.path is not None and self.sources:
            raise InputError("give path or sources, not both")
        if self.keep_tokens and self.variation is None:
            raise InputError("keep_tokens needs shuffle_captions or tag_dropout")
        for name, words in (("masks", (BESIDE, ALPHA)), ("controls", (BESIDE, EDGES))):
            if len(self.sources) > 1 and getattr(self, name) not in (None, *words):
                raise InputError(
                    f"{name}: with several sources, name a folder for each, or {' or '.join(words)}"
                )

    @property
    def variation(self) -> Variation | None:
        """How the tags of captions are changed at random; None if they are not."""
        if not self.shuffle_captions and not self.tag_dropout:
            return None
        return Variation(self.shuffle_captions, self.keep_tokens, self.tag_dropout)

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """The sources, with what is given for all of them where they have nothing of their own."""
        sources = self.sources if self.path is None else (Source(path=self.path),)
        return tuple(
            replace(
                each, trigger=each.trigger or self.trigger, masks=each.masks or self.masks,
                controls=each.controls or self.controls,
            )
            for each in sources
        )  # fmt: skip

    @property
    def columns(self) -> Columns:
        """Names of columns in tables and JSON."""
        return Columns(
            image=self.image_column,
            caption=self.caption_column,
            control=self.control_column,
            split=self.split,
        )

    def of_others(self, path: str) -> "DataSettings":
        """Return the settings for images of another kind: no trigger, no folder of masks, no controls."""
        masks = self.masks if self.masks in (BESIDE, ALPHA) else None
        return replace(self, path=path, sources=(), trigger=None, masks=masks, controls=None)

    def held_out(self, path: str) -> "DataSettings":
        """Return the settings for images of the same kind on which a loss is measured: nothing is random.

        Where the images to learn have a folder of control images, these have theirs beside them.
        """
        masks = self.masks if self.masks in (BESIDE, ALPHA) else None
        kinds = {each.controls for each in self.all_sources} - {None}
        controls = (EDGES if kinds == {EDGES} else BESIDE) if kinds else None
        return replace(
            self, path=path, sources=(), masks=masks, controls=controls, flip=False, caption_dropout=0.0,
            shuffle_captions=False, keep_tokens=0, tag_dropout=0.0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureBatches:
    """The batch of each step, read from the caches; a pure function of the step's number.

    Attributes:
        settings: of the data.
        pictures: images of each bucket, each as often as it is repeated. Their captions are those that are
            drawn from.
        order: of the batches.
        latents: cache of the latents.
        masks: cache of the masks; None if there are none.
        controls: cache of the control images; None if there are none.
        texts: cache of the captions' embeddings; None if captions are encoded in each step.
        text: tokenizes captions if ``texts`` is None; without weights, since batches are read in a process of
            their own.
        report: of unusable examples.
        words: those in captions that stand for vectors in training.
    """

    settings: DataSettings
    pictures: Sequence[Sequence[Placed]]
    order: Order
    latents: Cache
    masks: Cache | None
    controls: Cache | None
    texts: Cache | None
    text: TextEncoders | None
    report: Report
    words: Words = ()

    @property
    def seen(self) -> int:
        """Number of images in a pass, each as often as it is repeated."""
        return sum(map(len, self.pictures))

    @property
    def different(self) -> int:
        """Number of different images."""
        return len({each.scanned.example.key for few in self.pictures for each in few})

    def __getitem__(self, step: int) -> LatentBatch:
        """Read the batch of a step, of one bucket; its text is embeddings if these are cached, else tokens.

        Raises:
            InputError: a cache has been damaged since the start.
        """
        bucket, indices = self.order[step]
        chosen = [self.pictures[bucket][index] for index in indices]
        rng = np.random.default_rng((self.order.seed, 2, step))
        captions = [each.scanned.captions[rng.integers(len(each.scanned.captions))] for each in chosen]
        has_caption = rng.random(len(chosen)) >= self.settings.caption_dropout
        if self.settings.flip:
            flips = rng.random(len(chosen)) < 0.5
            chosen = [each.mirror if flip else each for each, flip in zip(chosen, flips, strict=True)]
        if self.texts is None:
            how, triggers = self.settings.variation, [each.scanned.example.trigger for each in chosen]
            captions = [
                with_trigger(each if how is None else varied(each, how, rng), trigger)
                for each, trigger in zip(captions, triggers, strict=True)
            ]
        latents = torch.stack([read(self.latents, picture.key)["latents"] for picture in chosen])
        return LatentBatch(
            latents=latents,
            text=self._text(captions),
            time_ids=torch.tensor([picture.placement.time_ids for picture in chosen]),
            has_caption=torch.from_numpy(has_caption),
            cell_weights=None if self.masks is None else self._cell_weights(chosen, latents.shape[-2:]),
            controls=None if self.controls is None else self._controls(chosen),
        )

    def _cell_weights(self, chosen: Sequence[Placed], size: torch.Size) -> Tensor:
        """Return the weights ``[B, 1, H/8, W/8]``: the masks, but nowhere less than ``unmasked_weight``."""
        assert self.masks is not None
        everywhere = torch.full(size, 255, dtype=torch.uint8)
        levels = [
            everywhere if each.mask_key is None else read(self.masks, each.mask_key)["mask"]
            for each in chosen
        ]
        return (torch.stack(levels)[:, None].float() / 255).clamp(min=self.settings.unmasked_weight)

    def _controls(self, chosen: Sequence[Placed]) -> Tensor:
        """Return the control images, ``[B, 1 or 3, H, W]``; grey ones have three channels beside others."""
        assert self.controls is not None
        found = [read(self.controls, str(each.control_key))["control"] for each in chosen]
        channels = max(map(len, found))
        return torch.stack([each.expand(channels, -1, -1) for each in found])

    def _text(self, captions: Sequence[str]) -> Conditioning | list[Tokens]:
        if self.texts is not None:
            return read_captions(captions, self.texts)
        assert self.text is not None
        return self.text.tokenize(as_prompts(captions), self.words)

    def facts(self) -> dict[str, Any]:
        """Return the unusable examples and the number of images in each bucket, for JSON."""
        buckets = {
            f"{few[0].placement.bucket.width}x{few[0].placement.bucket.height}": len(few)
            for few in self.pictures
        }
        placed = [each for few in self.pictures for each in few]
        masks = {} if self.masks is None else {"masks": len({each.mask_key for each in placed} - {None})}
        controls = {} if self.controls is None else {"controls": len({each.control_key for each in placed})}
        return {**self.report.facts(), "buckets": buckets, **masks, **controls}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedData:
    """Images and captions that were checked, and are not encoded yet.

    Attributes:
        settings: of the data.
        scanned: the usable images, each once.
        found: report of the others.
    """

    settings: DataSettings
    scanned: Sequence[Scanned]
    found: Report

    @property
    def seen(self) -> int:
        """Number of images in a pass, each as often as it is repeated."""
        return sum(each.example.repeats for each in self.scanned)

    @property
    def different(self) -> int:
        """Number of different images."""
        return len({each.example.key for each in self.scanned})

    @property
    def captions(self) -> list[str]:
        """All captions, with their triggers."""
        return [with_trigger(text, each.example.trigger) for each in self.scanned for text in each.captions]

    def check_masks(self) -> None:
        """Check that masks were found, if they were asked for.

        Raises:
            InputError: no image has one.
        """
        asked = next((each.masks for each in self.settings.all_sources if each.masks), None)
        if asked is not None and all(each.mask is None for each in self.scanned):
            raise InputError(f"masks is {shown(asked)}, but no image has one")

    def digests(self) -> dict[str, Any]:
        """Return what decides the batches beside the settings: images and captions, in their order."""
        images = [(each.digest, each.mask, each.control, each.example.repeats) for each in self.scanned]
        return {
            "images": len(self.scanned),
            "images_digest": digest_of(repr(images).encode()),
            "captions_digest": digest_of(repr([each.captions for each in self.scanned]).encode()),
        }

    def check_unchanged(self, report: Path) -> None:
        """Check that the data are those of an earlier start, by the report that it wrote.

        Raises:
            ConflictError: they are others.
        """
        before = read_json(report).get("read_as") if report.exists() else None
        now = self.digests()
        if not isinstance(before, dict) or before == now:  # older versions recorded none
            return
        kinds = [
            kind for kind in ("images", "captions") if before.get(f"{kind}_digest") != now[f"{kind}_digest"]
        ]
        changed = f"{' and '.join(kinds)} changed"
        if before.get("images") != now["images"]:
            changed = f"{before.get('images')} usable images then, {now['images']} now"
        where = ", ".join(each.path for each in self.settings.all_sources)
        raise ConflictError(
            f"{shown(where)} is not as it was when the run in {named(report.parent)} began: {changed}; "
            "restore it, or begin a new run in another folder"
        )


def scan_data(
    settings: DataSettings, *, cache: Path, report: Path | None = None, captions: Sequence[str] = (),
    resumed: bool = False,
) -> ScannedData:  # fmt: skip
    """List a source, and check its images and captions; nothing is encoded.

    Args:
        settings: of the data.
        cache: folder for converted tables.
        report: as in ``open_data``; None to write none.
        captions: as in ``open_data``.
        resumed: as in ``open_data``.

    Raises:
        InputError: as ``open_data``.
    """
    if report is not None:
        check_renewable(report)
    examples = open_sources(settings.all_sources, settings.columns, cache=cache)
    if captions:
        examples = [replace(each, captions=partial(tuple, captions)) for each in examples]
    scanned, found = scan(
        examples, min_side=settings.min_side or settings.size // 4, caption_lines=settings.caption_lines
    )
    data = ScannedData(settings=settings, scanned=scanned, found=found)
    if resumed and report is not None:
        data.check_unchanged(report)
    _check_report(found, settings, report)
    if data.seen > _MOST_SEEN:
        raise InputError(f"repeats make {data.seen} images in a pass: at most {_MOST_SEEN} are allowed")
    _warn_of_crops(data)
    return data


def _warn_of_crops(data: ScannedData) -> None:
    """Warn of images that lose more than half of their area to the crop."""
    cropped: list[str] = []
    for each in _place_all(data.scanned, data.settings, seed=0):
        resized, bucket = each.placement.resized, each.placement.bucket
        if bucket.height * bucket.width < _LEAST_KEPT * resized.height * resized.width:
            cropped.append(each.scanned.example.key)
    if cropped:
        warnings.warn(
            f"{counted(len(cropped), 'image')} with more than half cropped ({first_few(cropped)}): no bucket "
            f"is as long (max_ratio is {data.settings.max_ratio:g})",
            stacklevel=3,
        )


def open_data(
    settings: DataSettings,
    *,
    vae: VAE,
    text: TextEncoders,
    cache: Path,
    report: Path,
    batch_size: int,
    seed: int,
    captions: Sequence[str] = (),
    words: Words = (),
    resumed: bool = False,
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
        captions: of every image instead of its own, of which each use draws one.
        words: see ``PictureBatches``; embeddings that are cached have none.
        resumed: whether ``report`` is of the run that is continued, which needs the same data.

    Raises:
        InputError: there is no such source, too many of its examples are unusable, or the data of a run that
            is continued have changed.
    """
    data = scan_data(settings, cache=cache, report=report, captions=captions, resumed=resumed)
    return encode_data(
        data, vae=vae, text=text, cache=cache, report=report, batch_size=batch_size, seed=seed, words=words
    )


def encode_data(
    data: ScannedData, *, vae: VAE, text: TextEncoders, cache: Path, report: Path, batch_size: int, seed: int,
    words: Words = (),
) -> PictureBatches:  # fmt: skip
    """Encode what the caches lack of scanned data, and return their batches; see ``open_data``.

    Raises:
        InputError: too many images cannot be decoded.
    """
    settings, found = data.settings, data.found
    dtype = DTYPES[settings.dtype]
    pictures = _place_all(data.scanned, settings, seed)
    latents = latents_cache(cache, vae, dtype)
    both = [*pictures, *(each.mirror for each in pictures)] if settings.flip else pictures
    troubles = encode_pictures(both, vae, latents, dtype)
    masks = masks_cache(cache, vae.layout.factor)
    troubles |= encode_masks(both, masks, cell=vae.layout.factor)
    controls = controls_cache(cache)
    troubles |= encode_controls(both, controls)
    for picture in pictures:
        if picture.key in troubles:
            found.note(picture.scanned.example.key, troubles[picture.key])
    _check_report(found, settings, report)

    pictures = [picture for picture in pictures if picture.key not in troubles]
    texts = texts_cache(cache, text, dtype) if settings.cache_captions else None
    if texts is not None:
        pictures = [_with_variants(each, settings) for each in pictures]
        encode_captions((each for p in pictures for each in p.scanned.captions), text, texts, dtype)
    by_bucket = _by_bucket(pictures)
    batches = PictureBatches(
        settings=settings,
        pictures=by_bucket,
        order=Order(tuple(map(len, by_bucket)), batch_size, seed),
        latents=latents,
        masks=masks if any(each.mask_key is not None for each in pictures) else None,
        controls=controls if all(each.control_key is not None for each in pictures) else None,
        texts=texts,
        text=None if texts is not None else text.without_weights(),
        report=found,
        words=words,
    )
    _write_report(report, {**batches.facts(), "read_as": data.digests()})
    if found.count:
        warnings.warn(f"{found}; the list is in {named(report)}", stacklevel=2)
    return batches


def _check_report(found: Report, settings: DataSettings, path: Path | None) -> None:
    """Raise ``InputError`` if too many examples are unusable, after writing the report."""
    try:
        found.check(settings.max_unusable)
    except InputError as error:
        if path is None:
            raise
        _write_report(path, found.facts())
        raise InputError(f"{error}; the list is in {named(path)}") from None


def _with_variants(picture: Placed, settings: DataSettings) -> Placed:
    """Replace an image's captions by those that are encoded: each with its variants and its trigger."""
    scanned, how = picture.scanned, settings.variation
    captions = [
        with_trigger(each, scanned.example.trigger)
        for caption in scanned.captions
        for each in ([caption] if how is None else variants(caption, how, settings.caption_variants))
    ]
    return replace(picture, scanned=replace(scanned, captions=(*captions,)))


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
    """Group images by bucket, from tall to wide, each as often as it is repeated."""
    groups: dict[Any, list[Placed]] = {}
    for picture in pictures:
        groups.setdefault(picture.placement.bucket, []).extend([picture] * picture.scanned.example.repeats)
    return [groups[bucket] for bucket in sorted(groups)]
