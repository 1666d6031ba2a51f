"""How a scene became a training picture: its original size and the crop, which SDXL's UNet is told.

Micro-conditioning (Podell et al. 2023, 2307.01952, section 2.2) needs pictures that differ in it: most views
here show the whole square, some are cut from a wider or taller original, some enlarged from a small one.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssd1b.tabletop.world.degradations import degrade
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import Scene

SIZE = 128
"""Side of every training picture."""

CUT = 0.18
"""The share of views that are cut from a longer original."""

ENLARGED = 0.12
"""The share of views that are enlarged from a smaller original."""

# At most so much longer, so that of every solid at least the middle stays in sight and captions stay true.
_LONGEST = 28
_SMALLEST = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """SDXL's micro-conditioning of one picture, in pixels.

    Attributes:
        original_height: of the picture as it was found; original_width: likewise.
        crop_top: first row of the crop, after the shorter side was brought to ``SIZE``; crop_left: likewise.
    """

    original_height: int = SIZE
    original_width: int = SIZE
    crop_top: int = 0
    crop_left: int = 0

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """The six numbers in the order in which the UNet takes them."""
        return (self.original_height, self.original_width, self.crop_top, self.crop_left, SIZE, SIZE)


def view(seed: int, index: int) -> View:
    """The view under which the training sees the scene at ``index`` of the stream ``seed``."""
    # A stream of its own beside the scenes' (of which the third number is 0 or 1).
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
    """The picture of a scene under a view: ``[SIZE, SIZE, 3]``."""
    picture = render(replace(scene, degradation=None), (view.original_width, view.original_height))
    shorter = min(picture.shape[:2])
    if shorter < SIZE:
        picture = np.array(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    top, left = view.crop_top, view.crop_left
    picture = np.ascontiguousarray(picture[top : top + SIZE, left : left + SIZE])
    return degrade(picture, scene.degradation, scene.seed)
