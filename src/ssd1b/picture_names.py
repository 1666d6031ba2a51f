"""Names of image files and of their caption files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
"""Suffixes of image files, in lower case."""

UNREAD = (
    ".apng", ".avif", ".bmp", ".cr2", ".cr3", ".dib", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif",
    ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".nef", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".qoi",
    ".raw", ".svg", ".tga", ".tif", ".tiff", ".xcf",
)  # fmt: skip
"""Suffixes of image files that cannot be read and are reported as skipped."""

MASKS = (".mask.png", "-masklabel.png")
"""Ends of the names of masks beside images, ``NAME.mask.png`` and OneTrainer's ``NAME-masklabel.png``."""

CONTROLS = (".control.png",)
"""Ends of the names of control images beside images."""


def beside_pictures(files: Iterable[Path], ends: Sequence[str]) -> dict[Path, Path]:
    """Map images to the files beside them whose names have one of these ends; others are omitted.

    Args:
        files: images, and everything else in their folders.
        ends: after an image's name without its suffix, such as ``MASKS``, in the order of preference.
    """
    there = set(files)
    pictures = (path for path in there if path.suffix.lower() in PICTURES)
    beside = ((path, path.with_name(path.stem + end)) for path in pictures for end in reversed(ends))
    return {path: file for path, file in beside if file in there}


def captions_by_picture(files: Iterable[Path]) -> dict[Path, Path]:
    """Map images to their caption files, ``.txt`` or ``.TXT`` of the same stem; others are omitted."""
    texts: dict[Path, Path] = {}
    pictures: list[Path] = []
    for path in sorted(files):
        if path.suffix.lower() == ".txt":
            texts[path.with_suffix("")] = path  # ".txt" sorts after ".TXT" and wins
        elif path.suffix.lower() in PICTURES:
            pictures.append(path)
    return {path: texts[stem] for path in pictures if (stem := path.with_suffix("")) in texts}
