"""What can go wrong with a picture, each under the words that a caption says it with."""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

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
    height, width = picture.shape[:2]
    block = _per_128(picture, 5 + 3 * rng.random())
    coarse = (max(1, round(width / block)), max(1, round(height / block)))
    image = Image.fromarray(picture).resize(coarse, Image.Resampling.BOX)
    return np.array(image.resize((width, height), Image.Resampling.NEAREST))


def _jpeg_artifacts(picture: Picture, rng: np.random.Generator) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=3 + int(5 * rng.random()))
    return np.array(Image.open(file))


def _noisy(picture: Picture, rng: np.random.Generator) -> Picture:
    noise = rng.standard_normal(picture.shape, np.float32) * (22 + 18 * rng.random())
    return np.clip(picture + noise + 0.5, 0, 255).astype(np.uint8)


DEGRADATIONS: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "blurry": _blurry,
    "monochrome": _monochrome,
    "low quality": _low_quality,
    "jpeg artifacts": _jpeg_artifacts,
    "noisy": _noisy,
}


def degrade(picture: Picture, degradation: str | None, seed: int) -> Picture:
    """Spoil a picture ``[height, width, 3]`` in the named way, with the randomness of ``seed``."""
    if degradation is None:
        return picture
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    return DEGRADATIONS[degradation](picture, rng)


def _per_128(picture: Picture, length: float) -> float:
    """A length given for a picture of 128 pixels, for this one."""
    return length * min(picture.shape[:2]) / 128
