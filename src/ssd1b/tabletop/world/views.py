"""Views: the original size and the crop of training images, for SDXL's micro-conditioning.

Micro-conditioning (Podell et al. 2023, 2307.01952, section 2.2) needs images that differ in it. Most views
show the whole square, some are cropped from a wider or taller image, some enlarged from a small one.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssd1b.tabletop.world.degradations import degrade
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import Scene

SIZE = 128
"""Side of training images in pixels."""

CUT = 0.18
"""Share of views cropped from a longer image."""

ENLARGED = 0.12
"""Share of views enlarged from a smaller image."""

# Limits the crop, so that the middle of every solid stays visible and captions stay true.
_LONGEST = 28
_SMALLEST = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """SDXL's micro-conditioning of one image, in pixels.

    Attributes:
        original_height: height before resizing and cropping.
        original_width: width before resizing and cropping.
        crop_top: first row of the crop, after the shorter side was resized to ``SIZE``.
        crop_left: first column of the crop.
    """

    original_height: int = SIZE
    original_width: int = SIZE
    crop_top: int = 0
    crop_left: int = 0

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """The six numbers in the UNet's order."""
        return (self.original_height, self.original_width, self.crop_top, self.crop_left, SIZE, SIZE)


def view(seed: int, index: int) -> View:
    """Return the view of the scene at ``index`` of the stream ``seed``."""
    # Scenes use 0 and 1 as the third number.
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index, 2])))
    kind = rng.random()
    if kind < CUT:
        longer = 1 + int(rng.random() * _LONGEST)
        start = int(rng.random() * (longer + 1))
        if rng.random() < 0.5:
            return View(original_width=SIZE + longer, crop_left=start)
        return View(original_height=SIZE + longer, crop_top=start)
    if kind < CUT + ENLARGED:
        side = _SMALLEST + int(rng.random() * (SIZE - _SMALLEST))
        return View(original_height=side, original_width=side)
    return View()


def photograph(scene: Scene, view: View) -> NDArray[np.uint8]:
    """Render a scene, resized and cropped as the view says: ``[SIZE, SIZE, 3]``."""
    picture = render(replace(scene, degradation=None), (view.original_width, view.original_height))
    shorter = min(picture.shape[:2])
    if shorter < SIZE:
        picture = np.array(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    top, left = view.crop_top, view.crop_left
    picture = np.ascontiguousarray(picture[top : top + SIZE, left : left + SIZE])
    return degrade(picture, scene.degradation, scene.seed)
