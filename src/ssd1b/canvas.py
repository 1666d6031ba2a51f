"""The surface that an image is drawn on: a picture with new sides, cut to its mask, and put together again.

Pillow and numpy are imported on first use, because settings are checked without them.
"""

import re
from typing import TYPE_CHECKING, NamedTuple

from ssd1b.errors import InputError, shown, unknown

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are exclusive, and all may lie outside the picture."""

MASK_CHANGES = ("white", "black")
"""Which part of a mask is changed."""

MASK_CONTENTS = {
    "original": "the picture",
    "fill": "the colours around the mask",
    "noise": "noise in the latents",
    "nothing": "zeros in the latents, a grey brown",
}
"""Initial content of the masked area, before noise is added (AUTOMATIC1111: "Masked content")."""

MASK_AREAS = ("whole", "masked")
"""The area that is generated: the whole picture, or the surroundings of the mask at full resolution."""

OUTPAINT_FILLS = ("edge", "reflect")
"""Initial content of new sides, before noise is added: repeated edge pixels, or a mirror image."""

SIDES = ("left", "top", "right", "bottom")

DEFAULT_SEAM = 16.0
"""Blur in pixels of the seam between a picture and its new sides."""

_MOST_SIDE, _SIDE_MULTIPLE = 2048, 8

_SIDE = re.compile(r"([a-z]+)=([0-9]{1,5})", re.IGNORECASE)


class Layout(NamedTuple):
    """How a picture and its mask are laid out; see the settings of the same names."""

    width: int
    height: int
    resize_mode: str = "crop"
    mask_change: str = "white"
    mask_blur: float | None = None
    mask_content: str = "original"
    mask_area: str = "whole"
    mask_padding: int = 32
    outpaint: str | None = None
    outpaint_fill: str = "edge"


class Source(NamedTuple):
    """What is drawn, and what it is put back into.

    Attributes:
        picture: RGB, of the size of the image to generate.
        mask: grey, of the same size, 255 is repainted; None repaints everything.
        canvas: RGB, the whole picture.
        canvas_mask: grey, of the canvas's size; None like ``mask``.
        box: the part of the canvas that ``picture`` shows.
    """

    picture: "Image"
    mask: "Image | None"
    canvas: "Image"
    canvas_mask: "Image | None"
    box: Box


def read_sides(text: str) -> Box:
    """Parse the sides to extend, such as "left=128,right=64"; commas may be spaces.

    Returns:
        Pixels to add at the left, top, right and bottom.

    Raises:
        InputError: a side is unknown, given twice, or not a multiple of 8 from 8 to 2048; or there is none.
    """
    found = dict.fromkeys(SIDES, 0)
    items = re.split(r"[,\s]+", text.strip())
    for item in items:
        match = _SIDE.fullmatch(item)
        if match is None:
            raise InputError(f"outpaint is {shown(text)}: it must be like left=128,right=64")
        side, size = match[1].lower(), int(match[2])
        if side not in found:
            raise unknown("side", side, SIDES)
        if found[side]:
            raise InputError(f"outpaint is {shown(text)}: {side} is given twice")
        if not 0 < size <= _MOST_SIDE or size % _SIDE_MULTIPLE:
            raise InputError(
                f"outpaint has {side}={size}: it must be a multiple of {_SIDE_MULTIPLE} from "
                f"{_SIDE_MULTIPLE} to {_MOST_SIDE}"
            )
        found[side] = size
    left, top, right, bottom = found.values()
    return left, top, right, bottom


def write_sides(sides: Box) -> str:
    """Write sides in the spelling that recipes and keys have; ``read_sides`` inverts it."""
    return ",".join(f"{name}={size}" for name, size in zip(SIDES, sides, strict=True) if size)


def lay_out(picture: "Image", mask: "Image | None", layout: Layout) -> Source:
    """Extend a picture, blur its mask, and cut both to what is drawn.

    Args:
        picture: RGB, fitted to the size without new sides; of any size if only the mask's area is drawn.
        mask: grey, of the same size; 255 is changed.
        layout: the rest.

    Raises:
        InputError: the mask is black everywhere.
    """
    sides = read_sides(layout.outpaint) if layout.outpaint else (0, 0, 0, 0)
    canvas = _extended(picture, sides, layout.outpaint_fill)
    mask = _blurred(mask, sides, layout, canvas.size)
    if mask is None:
        return Source(canvas, None, canvas, None, (0, 0, *canvas.size))
    if (bounds := mask.getbbox()) is None:
        raise InputError("the mask is black everywhere: paint white what is to change")
    drawn = filled(canvas, mask) if layout.mask_content == "fill" else canvas
    if layout.mask_area == "whole":
        return Source(drawn, mask, canvas, mask, (0, 0, *canvas.size))
    box = crop_box(bounds, layout.mask_padding, canvas.size, (layout.width, layout.height))
    size = (layout.width, layout.height)
    from PIL import Image

    part = _cropped(drawn, box).resize(size, Image.Resampling.LANCZOS)
    # A box keeps a hard edge hard, where interpolation would let cells outside of it change, too.
    return Source(part, mask.crop(box).resize(size, Image.Resampling.BOX), canvas, mask, box)


def put_back(image: "Image", source: Source) -> "Image":
    """Lay a new image over the canvas where the mask is white; where it is black, each bit is the canvas's.

    Args:
        image: RGB, of the size of ``source.picture``.
        source: see ``Source``.
    """
    if source.canvas_mask is None:
        return image
    from PIL import Image

    left, top, right, bottom = source.box
    if image.size != (right - left, bottom - top):
        image = image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    over = source.canvas.copy()
    over.paste(image, (left, top))
    return Image.composite(over, source.canvas, source.canvas_mask)


def crop_box(bounds: Box, padding: int, size: tuple[int, int], shape: tuple[int, int]) -> Box:
    """Choose what surrounds a mask: its bounds with padding, grown to the shape of the image.

    The box is moved into the picture. If the picture is too small for it, it extends beyond both sides.
    AUTOMATIC1111's ``masking.expand_crop_region`` and diffusers' ``get_crop_region`` choose the same box
    where it fits.

    Args:
        bounds: of the white part.
        padding: pixels around it, as far as the picture reaches.
        size: width and height of the picture.
        shape: width and height of the image to generate.
    """
    low = [max(each - padding, 0) for each in bounds[:2]]
    high = [min(each + padding, most) for each, most in zip(bounds[2:], size, strict=True)]
    width, height = (end - begin for begin, end in zip(low, high, strict=True))
    wanted = (max(width, int(height * shape[0] / shape[1])), max(height, int(width * shape[1] / shape[0])))
    for axis, (length, most) in enumerate(zip(wanted, size, strict=True)):
        begin = low[axis] - (length - (high[axis] - low[axis])) // 2
        begin = (most - length) // 2 if length > most else min(max(begin, 0), most - length)
        low[axis], high[axis] = begin, begin + length
    return low[0], low[1], high[0], high[1]


def filled(picture: "Image", mask: "Image") -> "Image":
    """Replace the white part of a mask by the colours around it, smoother farther from its edge.

    The colours come from a pyramid: each pixel from the finest level at which its surroundings are known
    (push and pull, Gortler et al., "The Lumigraph", 1996, section 3.4).

    Args:
        picture: RGB.
        mask: grey, of the same size; grey is replaced in part.
    """
    import numpy as np
    from PIL import Image

    known = 1 - np.asarray(mask, np.float32)[..., None] / 255
    levels = _pulled(np.asarray(picture, np.float32) * known, known)
    return Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))


def _pulled(colours: "np.ndarray", known: "np.ndarray") -> "np.ndarray":
    """Fill in what is not known; ``colours [H, W, 3]`` are multiplied by ``known [H, W, 1]``, 0 to 1."""
    import numpy as np
    from PIL import Image

    height, width = known.shape[:2]
    if height == width == 1:
        return colours / known if known > 0 else np.full_like(colours, 127.5)

    def halved(levels: "np.ndarray") -> "np.ndarray":
        even = np.pad(levels, ((0, height % 2), (0, width % 2), (0, 0)))
        return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]

    weight = np.maximum(halved(known), 1)
    coarse = _pulled(halved(colours) / weight, halved(known) / weight)
    double = (coarse.shape[1] * 2, coarse.shape[0] * 2)
    grey = (Image.fromarray(np.ascontiguousarray(coarse[..., band])) for band in range(3))
    bands = [np.asarray(each.resize(double, Image.Resampling.BILINEAR)) for each in grey]
    return colours + (1 - known) * np.dstack(bands)[:height, :width]


def _extended(picture: "Image", sides: Box, fill: str) -> "Image":
    if not any(sides):
        return picture
    import numpy as np
    from PIL import Image

    left, top, right, bottom = sides
    widths = ((top, bottom), (left, right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(picture), widths, mode="edge" if fill == "edge" else "reflect"))


def _blurred(mask: "Image | None", sides: Box, layout: Layout, size: tuple[int, int]) -> "Image | None":
    """Extend a mask by new sides, which are changed in full, and blur it inside of them."""
    if mask is None and not any(sides):
        return None
    from PIL import Image, ImageFilter

    inner = (size[0] - sides[0] - sides[2], size[1] - sides[1] - sides[3])
    whole = Image.new("L", size, 255)
    whole.paste(mask if mask is not None else Image.new("L", inner), sides[:2])
    blur = layout.mask_blur if layout.mask_blur is not None else DEFAULT_SEAM if any(sides) else 0.0
    if blur == 0:
        return whole
    soft = whole.filter(ImageFilter.GaussianBlur(blur))
    if any(sides):
        outside = Image.new("L", size, 255)
        outside.paste(0, (sides[0], sides[1], sides[0] + inner[0], sides[1] + inner[1]))
        soft.paste(255, (0, 0), outside)
    return soft


def _cropped(picture: "Image", box: Box) -> "Image":
    """Cut a box out of a picture; what lies beyond its sides repeats the outermost pixels."""
    beyond = (
        max(-box[0], 0),
        max(-box[1], 0),
        max(box[2] - picture.width, 0),
        max(box[3] - picture.height, 0),
    )
    left, top = beyond[:2]
    return _extended(picture, beyond, "edge").crop((box[0] + left, box[1] + top, box[2] + left, box[3] + top))
