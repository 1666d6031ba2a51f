"""Small pictures, and the files of them."""

import io
from typing import Any

import numpy as np
from PIL import Image


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture in which no two places are alike, without fine detail."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


def as_bytes(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
