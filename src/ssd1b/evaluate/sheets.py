"""Contact sheets: many images in one, with captions or as a table with headings."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
FONT_SIZE = 11


def contact_sheet(pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> Image.Image:
    """Arrange captioned images of equal size, ``[height, width, 3]``, in a roughly square grid."""
    height, width = pictures[0].shape[:2]
    font = ImageFont.load_default(FONT_SIZE)
    # The font is proportional; an n has about the average width of a letter.
    texts = [textwrap.wrap(caption, int(width / font.getlength("n"))) for caption in captions]
    lines = max(map(len, texts))
    across = math.ceil(math.sqrt(len(pictures)))
    cell = (width + MARGIN, height + (lines + 1) * (FONT_SIZE + 3) + MARGIN)
    down = math.ceil(len(pictures) / across)
    sheet = Image.new("RGB", (across * cell[0] + MARGIN, down * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        row, column = divmod(index, across)
        left, top = column * cell[0] + MARGIN, row * cell[1] + MARGIN
        sheet.paste(Image.fromarray(picture), (left, top))
        draw.multiline_text((left, top + height + 2), "\n".join(text), fill="black", font=font, spacing=3)
    return sheet


def picture_table(
    rows: Sequence[Sequence[Image.Image]], top: Sequence[str], left: Sequence[str], *, margin: int = 150
) -> Image.Image:
    """Arrange images of equal size in a table.

    Args:
        rows: the images.
        top: a heading for each column.
        left: a heading for each row.
        margin: width of the row headings in pixels.
    """
    width, height = rows[0][0].size
    font = ImageFont.load_default(FONT_SIZE + 1)
    head = 2 * FONT_SIZE
    page = Image.new("RGB", (margin + width * len(top), head + height * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for column, text in enumerate(top):
        draw.text((margin + width * column + 4, 4), text, "black", font)
    for row, (text, images) in enumerate(zip(left, rows, strict=True)):
        lines = textwrap.wrap(text, int(margin / font.getlength("n")))
        draw.multiline_text((4, head + height * row + 4), "\n".join(lines), "black", font)
        for column, image in enumerate(images):
            page.paste(image, (margin + width * column, head + height * row))
    return page
