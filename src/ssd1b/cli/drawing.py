"""Drawing with somebody watching: a progress bar, a preview, Ctrl-C.

This module imports torch; commands import it when they get to work.
"""

import itertools
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from ssd1b.cli.options import ModelChoice
from ssd1b.diffusion.samplers import Step
from ssd1b.errors import InputError, line
from ssd1b.files import named, open_regular
from ssd1b.images import Picture, save_picture
from ssd1b.jobs.previews import previews
from ssd1b.pipeline import Pipeline, Watch
from ssd1b.saving import replacing
from ssd1b.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from ssd1b.actions.lab import Loading

PREVIEW = "ssd1b-preview"
"""Name of the PNG, beside the pictures, that shows the one that is being drawn."""

_PREVIEW_MARK = "ssd1b-preview"
"""Key of a text in it, by which it is known from a picture of the user's."""

_CELLS = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
_UNITS = {"search": "trial", "prove": "setting"}


def load(choice: ModelChoice) -> Pipeline:
    """Load a model, as ``Pipeline.load`` does."""
    _prepare_process()
    return Pipeline.load(
        choice.model or DEFAULT_MODEL,
        device=choice.device,
        dtype=choice.dtype,
        offline=choice.offline,
        prediction=choice.prediction,
        token=choice.token,
        paths=choice.paths,
        execution=choice.execution,
        threads=choice.threads or "auto",
        notify=_notify,
    )


def loading(choice: ModelChoice) -> "Loading":
    """How the lab loads models."""
    from ssd1b.actions.lab import Loading

    _prepare_process()
    return Loading(
        device=choice.device, dtype=choice.dtype, offline=choice.offline, prediction=choice.prediction,
        threads=choice.threads or "auto", notify=_notify,
    )  # fmt: skip


def _prepare_process() -> None:
    """Print warnings as one line each."""
    # The tokenizer warns of prompts beyond 77 tokens, which are cut into chunks here, not cut off.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.formatwarning = lambda message, *where, **source: f"warning: {line(str(message))}\n"


def _notify(what: str) -> None:
    print(f"{what} ...", file=sys.stderr)  # noqa: T201


@contextmanager
def watched(pipeline: Pipeline, steps: int, shown_in: Path | None = None) -> Iterator[Watch]:
    """Give a function for ``Pipeline.draw`` that shows the steps done and the time left, on a terminal only.

    Args:
        pipeline: the model.
        steps: of all pictures.
        shown_in: a folder for a file that shows the picture being drawn; None shows none.
    """
    bar = tqdm(total=steps, unit="step", disable=None, leave=False)
    with bar, nullcontext() if shown_in is None else preview(pipeline, shown_in) as show:

        def watch(step: Step) -> None:
            bar.update()
            if show is not None:
                show(step)

        yield watch


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show how much of a task is done and the time left, on a terminal only."""
    look: Any = {"bar_format": _CELLS} if label == "cells" else {"desc": label, "unit": _UNITS[label]}
    with tqdm(total=total, disable=None, leave=False, **look) as bar:
        yield bar.update


def save(picture: Picture, out: str, format: str | None) -> Path:
    """Save a finished picture, in the folder for temporary files if its own place takes it no longer.

    Raises:
        InputError: its own place took it not; the message says where the picture is.
    """
    try:
        return save_picture(picture, out, format)
    except InputError as error:
        folder = tempfile.mkdtemp(prefix="ssd1b-")
        try:
            kept = save_picture(picture, folder + os.sep, format)
        except InputError:
            os.rmdir(folder)
            raise type(error)(f"{error}; {folder} does not take the picture either, so it is lost") from None
        raise type(error)(f"{error}; the picture is kept as {kept}, and no other was begun") from None


def preview_file(folder: Path) -> Path:
    """The name for a preview: the first that is free, or that an earlier preview left."""
    for number in itertools.count(1):
        path = folder / (f"{PREVIEW}.png" if number == 1 else f"{PREVIEW}-{number}.png")
        if not os.path.lexists(path) or _is_preview(path):
            return path
    raise AssertionError("numbers do not end")


def _is_preview(path: Path) -> bool:
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return not path.is_symlink() and image.info.get(_PREVIEW_MARK) is not None
    except (InputError, OSError, SyntaxError, ValueError):  # no PNG, or a damaged one
        return False


@contextmanager
def preview(pipeline: Pipeline, folder: Path) -> Iterator[Watch]:
    """Give a watcher of steps that keeps a preview in ``preview_file``. Afterwards the file is removed.

    Raises:
        InputError: the file cannot be written.
    """
    path = preview_file(folder)
    if path.stem != PREVIEW:
        click.echo(f"preview: {named(path)}", err=True)
    mark = PngImagePlugin.PngInfo()
    mark.add_text(_PREVIEW_MARK, "a preview, which goes when the picture is finished")

    def show(image: Image.Image) -> None:
        nonlocal path
        path = preview_file(folder) if not _is_preview(path) else path
        with replacing(path, durable=False) as aside:
            image.save(aside, "PNG", compress_level=1, pnginfo=mark)

    try:
        yield previews(pipeline, show)
    finally:
        if _is_preview(path):
            path.unlink()
