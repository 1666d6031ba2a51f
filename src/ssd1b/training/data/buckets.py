"""Aspect-ratio buckets: the shapes of training images, and how an image is resized and cropped to one.

As SDXL's (Podell et al. 2023, 2307.01952, section 2.3 and appendix I), buckets have about as many pixels as
the square, and sides that are multiples of 64.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ssd1b.errors import InputError

Crop: TypeAlias = Literal["centre", "random"]


class Bucket(NamedTuple):
    """Height and width in pixels of the images in a batch."""

    height: int
    width: int


class Placement(NamedTuple):
    """How an image is brought to the shape of its bucket.

    Attributes:
        original: size of the image in pixels.
        resized: size that covers the bucket.
        crop: first row and column of the crop, in the resized image.
        bucket: size of the crop.
        mirrored: whether left and right of the resized image are swapped before it is cropped.
    """

    original: Bucket
    resized: Bucket
    crop: tuple[int, int]
    bucket: Bucket
    mirrored: bool = False

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's micro-conditioning (2307.01952, section 2.2), as the UNet takes it."""
        (height, width), (top, left) = self.original, self.crop
        return (height, width, top, left, self.bucket.height, self.bucket.width)

    @property
    def mirror(self) -> "Placement":
        """The placement that gives the mirror image of the same crop, with the crop's column there."""
        top, left = self.crop
        across = self.resized.width - self.bucket.width - left
        return self._replace(crop=(top, across), mirrored=not self.mirrored)


def buckets_for(size: int, *, multiple: int = 64, max_ratio: float = 4.0) -> list[Bucket]:
    """Return all shapes of at most ``size`` squared pixels, from tall to wide.

    The longer side grows in steps of ``multiple``; the shorter is the longest within the area. For 1024 these
    are 33 of the shapes in SDXL's table, with all nine of SSD-1B's model card.

    Args:
        size: side of the square in pixels, a multiple of ``multiple``.
        multiple: all sides are multiples of it.
        max_ratio: largest ratio of the longer side to the shorter.

    Raises:
        InputError: the size is not a multiple.
    """
    if size < multiple or size % multiple:
        raise InputError(f"size is {size}: it must be a multiple of {multiple}, the setting 'multiple'")
    found: set[Bucket] = set()
    for longer in range(size, size * size // multiple + 1, multiple):
        shorter = size * size // longer // multiple * multiple
        if longer > max_ratio * shorter:
            break
        found |= {Bucket(longer, shorter), Bucket(shorter, longer)}
    return sorted(found, key=lambda bucket: (bucket.width / bucket.height, bucket))


def nearest(buckets: Sequence[Bucket], height: int, width: int) -> Bucket:
    """Return the bucket whose aspect ratio differs by the smallest factor; the first of equal ones."""
    ratio = math.log(width / height)
    return min(buckets, key=lambda bucket: abs(math.log(bucket.width / bucket.height) - ratio))


def place(original: tuple[int, int], bucket: Bucket, *, crop: Crop, seed: Sequence[int]) -> Placement:
    """Resize to cover the bucket, keeping the aspect ratio, and crop.

    Args:
        original: height and width of the image.
        bucket: to cover.
        crop: "centre", or "random" for a position drawn from the seed.
        seed: must differ between images, or all are cropped at the same position.
    """
    height, width = original
    scale = max(bucket.height / height, bucket.width / width)
    resized = Bucket(
        max(bucket.height, round(height * scale)),
        max(bucket.width, round(width * scale)),
    )
    room = (resized.height - bucket.height, resized.width - bucket.width)
    if crop == "centre":
        top, left = room[0] // 2, room[1] // 2
    else:
        top, left = (int(each) for each in np.random.default_rng(seed).integers(0, room, endpoint=True))
    return Placement(Bucket(*original), resized, (top, left), bucket)
