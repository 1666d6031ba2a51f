"""Canny's edge detector, as OpenCV computes it, with which ControlNets for edges were trained.

Canny 1986, "A computational approach to edge detection". Numbers and rounding are those of OpenCV's
``Canny(image, low, high)`` with a Sobel operator of 3 x 3 and the sum of absolute gradients
(``modules/imgproc/src/canny.cpp``). It does not blur; diffusers' and ControlNet's examples do not, either.
"""

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

LOW, HIGH = 100, 200
"""Thresholds of ControlNet's and diffusers' examples. 8-bit gradients go up to 2040."""

_TANGENT = 13573
"""tan(22.5 degrees) in fixed point, 15 bits."""


def canny(
    picture: UInt8[np.ndarray, "height width 3"], low: int = LOW, high: int = HIGH
) -> UInt8[np.ndarray, "height width"]:
    """Find edges: lines of one pixel where brightness or colour changes most.

    Args:
        picture: RGB.
        low: gradients up to this are no edge.
        high: gradients above this are one; those between are if they continue one.

    Returns:
        255 on edges, 0 elsewhere.
    """
    across, down = _gradients(picture)
    size = np.abs(across) + np.abs(down)
    strongest = size.argmax(axis=2)[:, :, None]  # of the three channels, the first if equal
    across, down, size = (np.take_along_axis(each, strongest, 2)[:, :, 0] for each in (across, down, size))
    ridge = (size > low) & _is_ridge(across, down, size)
    return np.where(_connected(ridge & (size > high), ridge), 255, 0).astype(np.uint8)


def _gradients(picture: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Sobel's gradients to the right and downwards; beyond its border a picture repeats its last pixels."""
    padded = np.pad(picture.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth_down[:, 2:] - smooth_down[:, :-2], smooth_across[2:] - smooth_across[:-2]


def _is_ridge(
    across: NDArray[np.int32], down: NDArray[np.int32], size: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Whether a gradient is the largest along its direction, which is rounded to 45 degrees."""
    around = np.pad(size, 1)
    height, width = size.shape

    def beside(right: int, below: int) -> NDArray[np.int32]:
        return around[1 + below : 1 + below + height, 1 + right : 1 + right + width]

    x, y = np.abs(across).astype(np.int64), np.abs(down).astype(np.int64) << 15
    flat = x * _TANGENT
    steep = flat + (x << 16)
    rises = (across ^ down) < 0
    horizontal = (size > beside(-1, 0)) & (size >= beside(1, 0))
    vertical = (size > beside(0, -1)) & (size >= beside(0, 1))
    falling = (size > beside(-1, -1)) & (size > beside(1, 1))
    rising = (size > beside(1, -1)) & (size > beside(-1, 1))
    return np.select([y < flat, y > steep, rises], [horizontal, vertical, rising], falling)


def _connected(seeds: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow the seeds over all allowed pixels that touch them, also at corners."""
    height, width = allowed.shape
    open_cells = np.pad(allowed & ~seeds, 1).ravel()
    found = np.pad(seeds, 1)
    row = width + 2
    steps = np.array([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1])
    front = np.flatnonzero(found)
    while len(front):
        near = np.unique((front[:, None] + steps).ravel())
        front = near[open_cells[near]]
        open_cells[front] = False
        found.ravel()[front] = True
    return found[1 : height + 1, 1 : width + 1]
