"""Encode the images and captions that the caches lack, and read the caches."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ssd1b.errors import FailedError, InputError
from ssd1b.models.text import Conditioning, TextEncoders
from ssd1b.models.vae import VAE
from ssd1b.progress import progress_bar
from ssd1b.prompts import Segment, format_prompt
from ssd1b.tensors import from_levels
from ssd1b.training.data.buckets import Placement
from ssd1b.training.data.cache import Cache
from ssd1b.training.data.examples import Unusable
from ssd1b.training.data.pictures import decode_and_crop, decode_control, decode_mask, digest_of
from ssd1b.training.data.scan import Scanned, in_threads

CAPTIONS_AT_ONCE = 32

Work = TypeVar("Work")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An image with its placement in a bucket."""

    scanned: Scanned
    placement: Placement

    @property
    def key(self) -> str:
        """Key of its latents: a digest of its bytes, its size in the bucket and its crop."""
        return self._key(self.scanned.digest)

    @property
    def mask_key(self) -> str | None:
        """Key of its mask's cells; None if it has no mask."""
        mask = self.scanned.mask
        return None if mask is None else self._key(f"{mask} alpha" if self.scanned.example.alpha else mask)

    @property
    def control_key(self) -> str | None:
        """Key of its control image; None if it has none."""
        control = self.scanned.control
        return control and self._key(f"{control} edges" if self.scanned.example.edges else control)

    @property
    def mirror(self) -> "Placed":
        """The mirror image."""
        return replace(self, placement=self.placement.mirror)

    def _key(self, digest: str) -> str:
        _, *where, mirrored = self.placement
        how = [tuple(each) for each in where]
        return digest_of(f"{digest} {how}{' mirrored' if mirrored else ''}".encode())


def caption_key(caption: str) -> str:
    """Return the key of a caption's embeddings."""
    return digest_of(caption.encode())


def as_prompts(captions: Iterable[str]) -> list[str]:
    """Escape captions for the prompt syntax: brackets in them are text, not emphasis."""
    return [format_prompt([[Segment(text=caption, weight=1.0)]]) for caption in captions]


def encode_pictures(pictures: Sequence[Placed], vae: VAE, cache: Cache, dtype: torch.dtype) -> dict[str, str]:
    """Write the latents of images that the cache lacks: the encoder's mean, scaled, ``[4, H/8, W/8]``.

    Images are encoded one at a time, so that the latents of one depend on nothing else.

    Returns:
        The problems of images that could not be decoded, by ``Placed.key``.

    Raises:
        InputError: the encoder gives NaN or infinity.
    """
    missing = _missing(cache, {picture.key: picture for picture in pictures}, label="check latents")
    troubles = {}
    for picture, pixels in zip(
        missing, in_threads(partial(_pixels, cache), missing, label="encode images"), strict=True
    ):
        if isinstance(pixels, Unusable):
            troubles[picture.key] = str(pixels)
        elif pixels is not None:
            batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(vae.device)
            with torch.inference_mode():
                latents = vae.encode(from_levels(batch).to(vae.dtype)).mean[0].to(dtype)
            if not latents.isfinite().all():
                raise FailedError(
                    f"the VAE gives NaN or infinity in {vae.dtype} for {picture.scanned.example.key}: "
                    "load it in float32 or bfloat16"
                )
            cache.write(picture.key, {"latents": latents})
    return troubles


def _pixels(cache: Cache, picture: Placed) -> NDArray[np.uint8] | Unusable | None:
    """Decode and crop an image; None if another process has encoded it in the meantime."""
    if cache.read(picture.key) is not None:
        return None
    try:
        data = picture.scanned.example.picture()
        if digest_of(data) != picture.scanned.digest:
            raise Unusable("picture changed while it was read")
        return decode_and_crop(data, picture.placement)
    except Unusable as trouble:
        return trouble


def encode_masks(pictures: Sequence[Placed], cache: Cache, *, cell: int) -> dict[str, str]:
    """Write the masks that the cache lacks, as levels of cells, ``[H/8, W/8]``.

    Args:
        pictures: those without masks are passed over.
        cache: of masks.
        cell: sides of a latent cell in pixels.

    Returns:
        The problems of masks that could not be decoded, by ``Placed.key``.
    """
    keyed = [(each, each.mask_key) for each in pictures]
    return _encode_companions("mask", keyed, partial(_mask, cell), cache)


def _mask(cell: int, picture: Placed) -> NDArray[np.uint8]:
    scanned = picture.scanned
    data = _read_again(scanned.example.mask, scanned.mask)
    return decode_mask(data, picture.placement, cell=cell, alpha=scanned.example.alpha)


def encode_controls(pictures: Sequence[Placed], cache: Cache) -> dict[str, str]:
    """Write the control images that the cache lacks, ``[1 or 3, H, W]``, 0 to 255.

    Args:
        pictures: those without control images are passed over.
        cache: of control images.

    Returns:
        The problems of control images that could not be decoded, by ``Placed.key``.
    """
    return _encode_companions("control", [(each, each.control_key) for each in pictures], _control, cache)


def _control(picture: Placed) -> NDArray[np.uint8]:
    scanned = picture.scanned
    data = _read_again(scanned.example.control, scanned.control)
    return decode_control(data, picture.placement, edges=scanned.example.edges)


def _encode_companions(
    what: str,
    keyed: Sequence[tuple[Placed, str | None]],
    decode: Callable[[Placed], NDArray[np.uint8]],
    cache: Cache,
) -> dict[str, str]:
    """Write the images that belong to others, under their keys, and return problems by ``Placed.key``."""

    def decoded(work: tuple[str, Placed]) -> NDArray[np.uint8] | Unusable:
        try:
            return decode(work[1])
        except Unusable as trouble:
            return trouble

    wanted = {key: (key, picture) for picture, key in keyed if key is not None}
    missing = _missing(cache, wanted, label=f"check {what}s")
    troubles = {}
    for (key, _), levels in zip(missing, in_threads(decoded, missing, label=f"encode {what}s"), strict=True):
        if isinstance(levels, Unusable):
            troubles[key] = f"{what}: {levels}"
        else:
            cache.write(key, {what: torch.from_numpy(levels)})
    return {picture.key: troubles[key] for picture, key in keyed if key in troubles}


def _read_again(read: Callable[[], bytes] | None, digest: str | None) -> bytes:
    """Read a file that was scanned, unless it has changed since."""
    assert read is not None
    data = read()
    if digest_of(data) != digest:
        raise Unusable("changed while it was read")
    return data


def encode_captions(captions: Iterable[str], text: TextEncoders, cache: Cache, dtype: torch.dtype) -> None:
    """Write the embeddings of captions that the cache lacks, and of the empty caption, for padding.

    An entry holds ``embeds [77 k, D]`` for a caption of k chunks, and ``pooled [P]``.
    """
    missing = _missing(cache, {caption_key(each): each for each in ("", *captions)}, label="check captions")
    with progress_bar(total=len(missing), label="encode captions", unit="caption", keep=True) as bar:
        for start in range(0, len(missing), CAPTIONS_AT_ONCE):
            group = missing[start : start + CAPTIONS_AT_ONCE]
            bar.update(len(group))
            few = [each for each in group if cache.read(caption_key(each)) is None]
            if few:
                _encode(few, text, cache, dtype)


def _encode(captions: Sequence[str], text: TextEncoders, cache: Cache, dtype: torch.dtype) -> None:
    prompts = as_prompts(captions)
    lengths = [text.tokenize([prompt])[0].ids[0].numel() for prompt in prompts]
    embeds, pooled = text.encode(text.tokenize(prompts))
    for index, (caption, length) in enumerate(zip(captions, lengths, strict=True)):
        entry = {"embeds": embeds[index, :length].to(dtype), "pooled": pooled[index].to(dtype)}
        if not all(part.isfinite().all() for part in entry.values()):
            raise FailedError(f"the text encoders give NaN or infinity in {dtype} for {caption[:60]!r}")
        cache.write(caption_key(caption), entry)


def read_captions(captions: Sequence[str], cache: Cache) -> Conditioning:
    """Read a batch of embeddings, padded with empty chunks as in ``TextEncoders.tokenize``."""
    entries = [read(cache, caption_key(caption)) for caption in captions]
    longest = max(len(entry["embeds"]) for entry in entries)
    empty = read(cache, caption_key(""))["embeds"]
    rows = [
        torch.cat([entry["embeds"], *[empty] * ((longest - len(entry["embeds"])) // len(empty))])
        for entry in entries
    ]
    return Conditioning(torch.stack(rows), torch.stack([entry["pooled"] for entry in entries]))


def read(cache: Cache, key: str) -> dict[str, torch.Tensor]:
    """Read an entry that was in the cache at the start.

    Raises:
        InputError: it has been removed or damaged since; the next start encodes it again.
    """
    tensors = cache.read(key)
    if tensors is None:
        raise InputError(f"{cache.path(key)}: damaged or removed since the start; restart to encode it again")
    return tensors


def _missing(cache: Cache, wanted: dict[str, Work], *, label: str) -> list[Work]:
    """Return what the cache lacks, in random order, so that concurrent processes share the work."""
    keys = list(wanted)
    there = in_threads(lambda key: cache.read(key) is not None, keys, label=label)
    missing = [wanted[key] for key, found in zip(keys, there, strict=True) if not found]
    random.SystemRandom().shuffle(missing)
    return missing
