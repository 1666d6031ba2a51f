"""Statistics of a single image, without a reference, that react to excessive guidance or too few steps."""

import numpy as np
from jaxtyping import Float, UInt8

Pixels = UInt8[np.ndarray, "height width 3"]
Plane = Float[np.ndarray, "height width"]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601."""

STATISTICS = ("sharpness", "contrast", "colourfulness", "saturation", "clipping")
"""Keys of the result of ``image_statistics``."""


def image_statistics(picture: Pixels) -> dict[str, float]:
    """Measure an image.

    Returns:
        sharpness: root mean square of the luma's Laplacian, in levels of 256 (its variance is the usual
        measure of focus, Pech-Pacheco et al. 2000); contrast: the luma's standard deviation, in levels of
        256;
        colourfulness: Hasler and Süsstrunk 2003, equation 1, about 0 to 110; saturation: mean HSV saturation,
        0 to 1; clipping: share of pixels with a channel at 0 or 255, which oversaturation increases.
    """
    floats = picture.astype(np.float32)
    luma = floats @ _LUMA
    high, low = floats.max(axis=2), floats.min(axis=2)
    return {
        "sharpness": float(np.sqrt(np.square(_laplacian(luma)).mean())),
        "contrast": float(luma.std()),
        "colourfulness": _colourfulness(floats),
        "saturation": float(((high - low) / np.maximum(high, 1)).mean()),
        "clipping": float(((picture == 0) | (picture == 255)).any(axis=2).mean()),
    }


def _laplacian(plane: Plane) -> Float[np.ndarray, "height-2 width-2"]:
    middle = plane[1:-1, 1:-1]
    return plane[:-2, 1:-1] + plane[2:, 1:-1] + plane[1:-1, :-2] + plane[1:-1, 2:] - 4 * middle


def _colourfulness(picture: Float[np.ndarray, "height width 3"]) -> float:
    red, green, blue = np.moveaxis(picture, 2, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue]).reshape(2, -1)
    spread, mean = np.linalg.norm(opponents.std(axis=1)), np.linalg.norm(opponents.mean(axis=1))
    return float(spread + 0.3 * mean)
