"""Files of pictures and of their captions, by their names alone."""

from collections.abc import Iterable
from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
"""Suffixes of pictures, in small letters."""

UNREAD = (
    ".apng", ".avif", ".bmp", ".cr2", ".cr3", ".dib", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif",
    ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".nef", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".qoi",
    ".raw", ".svg", ".tga", ".tif", ".tiff", ".xcf",
)  # fmt: skip
"""Suffixes of pictures that are not read; they are listed as left out."""


def captions_by_picture(files: Iterable[Path]) -> dict[Path, Path]:
    """The text file of a picture's stem, for the pictures that have one; ``.TXT`` will do."""
    texts: dict[Path, Path] = {}
    pictures = []
    for path in sorted(files):
        if path.suffix.lower() == ".txt":
            texts[path.with_suffix("")] = path  # ".txt" stands behind ".TXT" in the order
        elif path.suffix.lower() in PICTURES:
            pictures.append(path)
    return {path: texts[stem] for path in pictures if (stem := path.with_suffix("")) in texts}
