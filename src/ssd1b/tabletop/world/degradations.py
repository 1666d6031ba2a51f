"""Degradations of images, by the words that captions use for them."""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Picture = NDArray[np.uint8]


def _blurry(picture: Picture, rng: np.random.Generator) -> Picture:
    radius = _per_128(picture, 1.6 + 1.2 * rng.random())
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _monochrome(picture: Picture, rng: np.random.Generator) -> Picture:
    # Rec. 601 luma in integers, 256ths.
    red, green, blue = (picture[..., i].astype(np.uint32) for i in range(3))
    luma = (77 * red + 150 * green + 29 * blue + 128) >> 8
    return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=2)


def _low_quality(picture: Picture, rng: np.random.Generator) -> Picture:
    """Quantize to a few shades per channel: banding and shifted colours."""
    shades = 3 + int(2 * rng.random())
    step = 255 / (shades - 1)
    return (np.floor(picture / step + 0.5) * step + 0.5).astype(np.uint8)


def _jpeg_artifacts(picture: Picture, rng: np.random.Generator) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=3 + int(5 * rng.random()))
    return np.array(Image.open(file))


def _noisy(picture: Picture, rng: np.random.Generator) -> Picture:
    noise = rng.standard_normal(picture.shape, np.float32) * (16 + 14 * rng.random())
    return np.clip(picture + noise + 0.5, 0, 255).astype(np.uint8)


def _low_res(picture: Picture, rng: np.random.Generator) -> Picture:
    height, width = picture.shape[:2]
    block = _per_128(picture, 5 + 3 * rng.random())
    coarse = (max(1, round(width / block)), max(1, round(height / block)))
    image = Image.fromarray(picture).resize(coarse, Image.Resampling.BOX)
    return np.array(image.resize((width, height), Image.Resampling.NEAREST))


def _watermark(picture: Picture, rng: np.random.Generator) -> Picture:
    """Draw parallel bands across the image, as stock agencies do: pale on dark, dark on pale."""
    height, width = picture.shape[:2]
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    spacing, thickness = _per_128(picture, 30 + 8 * rng.random()), _per_128(picture, 4.5)
    slope = 1 if rng.random() < 0.5 else -1
    start = rng.random() * spacing - (height if slope > 0 else 0)
    for count in range(int((width + height) / spacing) + 2):
        left = start + count * spacing
        ends = [(left, 0), (left + slope * height, height)]
        draw.line(ends, fill=90 + int(30 * rng.random()), width=max(1, round(thickness)))
    opposite = Image.new("RGB", (width, height), "white" if picture.mean() < 128 else "black")
    return np.array(Image.composite(opposite, Image.fromarray(picture), mask))


def _sketch(picture: Picture, rng: np.random.Generator) -> Picture:
    """Keep only outlines, as in a pencil drawing."""
    luma = Image.fromarray(_monochrome(picture, rng)[..., 0])
    smooth = np.asarray(luma.filter(ImageFilter.GaussianBlur(_per_128(picture, 0.8))), np.float32)
    across = np.abs(np.diff(smooth, axis=1, prepend=smooth[:, :1]))
    down = np.abs(np.diff(smooth, axis=0, prepend=smooth[:1]))
    darkness = np.clip((across + down - 2) * (10 + 3 * rng.random()), 0, 190)
    paper = np.array((250, 248, 240), np.float32)
    return np.clip(paper - darkness[..., None], 0, 255).astype(np.uint8)


def _cropped(picture: Picture, rng: np.random.Generator) -> Picture:
    """Enlarge one corner."""
    height, width = picture.shape[:2]
    share = 0.55 + 0.1 * rng.random()
    left, top = ((1 - share) * length * (rng.random() < 0.5) for length in (width, height))
    image = Image.fromarray(picture)
    box = (left, top, left + share * width, top + share * height)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


DEGRADATIONS: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "blurry": _blurry,
    "monochrome": _monochrome,
    "low quality": _low_quality,
    "jpeg artifacts": _jpeg_artifacts,
    "noisy": _noisy,
    "low res": _low_res,
    "watermark": _watermark,
    "sketch": _sketch,
    "cropped": _cropped,
}

COLORLESS = ("monochrome", "sketch")
"""Degradations that hide colours."""


def degrade(picture: Picture, degradation: str | None, seed: int) -> Picture:
    """Apply a degradation, with its own random ``seed``, to an image ``[height, width, 3]``."""
    if degradation is None:
        return picture
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    return DEGRADATIONS[degradation](picture, rng)


def _per_128(picture: Picture, length: float) -> float:
    """Scale a length from an image of 128 pixels to this one."""
    return length * min(picture.shape[:2]) / 128
