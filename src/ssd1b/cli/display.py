"""What a command shows while it generates: a progress bar and a preview; imports torch."""

import itertools
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from PIL import Image, PngImagePlugin

from ssd1b.diffusion.samplers import Step
from ssd1b.errors import InputError
from ssd1b.files import named, open_regular
from ssd1b.images import Picture, save_picture
from ssd1b.jobs.previews import previews
from ssd1b.pipeline import Pipeline, Watch
from ssd1b.progress import progress_bar
from ssd1b.saving import replacing

PREVIEW = "ssd1b-preview"
"""Stem of the PNG file that shows the image being generated."""

_PREVIEW_MARK = "ssd1b-preview"
"""Key of a text chunk that tells a preview from a user's image."""

_CELLS = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
_UNITS = {
    "search": "trial", "prove": "setting", "render": "image", "rows": "row", "modules": "module",
    "upscale": "tile",
}  # fmt: skip


@contextmanager
def watched(
    pipeline: Pipeline, steps: int, preview_folder: Path | None = None
) -> Generator[Watch, None, None]:
    """Show the steps done and the time left; yields the function for ``Pipeline.draw``.

    Args:
        pipeline: the model.
        steps: of all images.
        preview_folder: for a file that shows the image being generated; None for no preview.
    """
    bar = progress_bar(total=steps, unit="step")
    with bar, nullcontext() if preview_folder is None else preview(pipeline, preview_folder) as show:

        def watch(step: Step) -> None:
            bar.update()
            if show is not None:
                show(step)

        yield watch


@contextmanager
def progress(label: str, total: int | None) -> Generator[Callable[[int], object], None, None]:
    """Show how much of a task is done and the time left."""
    style: Any = {"style": _CELLS} if label == "cells" else {"label": label, "unit": _UNITS[label]}
    with progress_bar(total=total, **style) as bar:
        yield bar.update


@contextmanager
def call_progress() -> Generator[Callable[[str, int], None], None, None]:
    """Show the current call and the number of calls done."""
    with progress_bar(unit="call") as bar:

        def advance(call: str, total: int) -> None:
            bar.total = total
            bar.set_description(call)
            bar.update()

        yield advance


def save(picture: Picture, out: str, format: str | None = None) -> Path:
    """Save an image; if that fails, save it to a temporary folder so that it is not lost.

    Raises:
        InputError: ``out`` cannot be written; the message says where the image is.
    """
    try:
        return save_picture(picture, out, format)
    except InputError as error:
        folder = tempfile.mkdtemp(prefix="ssd1b-")
        try:
            kept = save_picture(picture, folder + os.sep, format)
        except InputError:
            os.rmdir(folder)
            raise type(error)(f"{error}; {folder} cannot be written either, so the image is lost") from None
        raise type(error)(f"{error}; the image was saved as {kept}, and no other was begun") from None


def _preview_file(folder: Path) -> Path:
    """Return the first name that is free or left by an earlier preview."""
    for number in itertools.count(1):
        path = folder / (f"{PREVIEW}.png" if number == 1 else f"{PREVIEW}-{number}.png")
        if not os.path.lexists(path) or _is_preview(path):
            return path
    raise AssertionError("unreachable")


def _is_preview(path: Path) -> bool:
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return not path.is_symlink() and image.info.get(_PREVIEW_MARK) is not None
    except (InputError, OSError, SyntaxError, ValueError):  # no PNG, or a damaged one
        return False


@contextmanager
def preview(pipeline: Pipeline, folder: Path) -> Generator[Watch, None, None]:
    """Yield a step watcher that keeps a preview file up to date; the file is removed at the end.

    Raises:
        InputError: the file cannot be written.
    """
    path = _preview_file(folder)
    if path.stem != PREVIEW:
        click.echo(f"preview: {named(path)}", err=True)
    mark = PngImagePlugin.PngInfo()
    mark.add_text(_PREVIEW_MARK, "a preview, which is removed when the image is finished")

    def show(image: Image.Image) -> None:
        nonlocal path
        path = _preview_file(folder) if not _is_preview(path) else path
        with replacing(path, durable=False) as aside:
            image.save(aside, "PNG", compress_level=1, pnginfo=mark)

    try:
        yield previews(pipeline, show)
    finally:
        if _is_preview(path):
            path.unlink()
