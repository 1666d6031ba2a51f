"""Drawing with somebody watching: a progress bar, a preview, Ctrl-C.

This module imports torch; commands import it when they get to work.
"""

import itertools
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from ssd1b.cli.options import ModelChoice
from ssd1b.diffusion.samplers import Step
from ssd1b.errors import InputError, line, shown
from ssd1b.files import open_regular
from ssd1b.images import Picture, save_picture, to_images, to_pixels
from ssd1b.pipeline import Pipeline
from ssd1b.runtime import choose_device, choose_dtype
from ssd1b.saving import replacing
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.speed.linear_decoder import LinearDecoder

if TYPE_CHECKING:
    import torch

    from ssd1b.lab.store import Store
    from ssd1b.lab.sweep import Attempt, Cell, Model

PREVIEW = "ssd1b-preview"
"""Name of the PNG, beside the pictures, that shows the one that is being drawn."""

_PREVIEW_MARK = "ssd1b-preview"
"""Key of a text in it, by which it is known from a picture of the user's."""

PREVIEW_SHARE = 0.1
"""How much of the time decoded previews may take, and those between them."""

_CELLS = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


def load(choice: ModelChoice) -> Pipeline:
    """Load a model, as ``Pipeline.load`` does; from here on warnings are one line each."""
    # The tokenizer warns of prompts beyond 77 tokens, which are cut into chunks here, not cut off.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.formatwarning = lambda message, *where, **source: f"warning: {line(str(message))}\n"
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
        notify=lambda message: print(f"{message} ...", file=sys.stderr),  # noqa: T201
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where the lab draws.

    Attributes:
        store: of the cells.
        known: finds a model by its name.
        prepare: loads it, to draw and measure.
        device: where; dtype: in which number format.
    """

    store: "Store"
    known: "Callable[[str], Model]"
    prepare: "Callable[[str], AbstractContextManager[Attempt]]"
    device: "torch.device"
    dtype: "torch.dtype"


@contextmanager
def workplace(choice: ModelChoice, out: Path) -> Iterator[Workplace]:
    """Open the folder of a sweep, a search or a guide.

    Raises:
        InputError: no such device or number format, or the folder is none of ours.
    """
    from ssd1b.lab.metrics import meter
    from ssd1b.lab.store import Store
    from ssd1b.lab.sweep import attempts, describe

    device = choose_device(choice.device)
    dtype = choose_dtype(choice.dtype, device)
    with closing(Store(out)) as store:
        look = partial(describe, store=store, offline=choice.offline, prediction=choice.prediction)
        known = cache(look)

        def prepare(name: str) -> "AbstractContextManager[Attempt]":
            pipeline = load(replace(choice, model=name))
            if look(name).fingerprint != known(name).fingerprint:
                raise InputError(f"the files of {shown(name)} changed while they were read: start again")
            return attempts(pipeline, meter(pipeline, known(name).path))

        yield Workplace(store=store, known=known, prepare=prepare, device=device, dtype=dtype)


@contextmanager
def watched(pipeline: Pipeline, steps: int, previews: Path | None = None) -> Iterator[Callable[[Step], None]]:
    """Give a function for ``Pipeline.draw`` that shows the steps done and the time left, on a terminal only.

    Args:
        pipeline: the model.
        steps: of all pictures.
        previews: a folder for a file that shows the picture being drawn; None shows none.
    """
    bar = tqdm(total=steps, unit="step", disable=None, leave=False)
    with bar, nullcontext() if previews is None else preview(pipeline, previews) as show:

        def watch(step: Step) -> None:
            bar.update()
            if show is not None:
                show(step)

        yield watch


@contextmanager
def cells_bar(wanted: "Iterable[Cell]", left: Set[str]) -> "Iterator[Callable[[Cell], None]]":
    """Show how much of cells is drawn, by what they cost, and the time left; on a terminal only.

    Args:
        wanted: the cells.
        left: keys of those that were not there before.
    """
    costs = {cell.key: cell.cost for cell in wanted if cell.key in left}
    with tqdm(total=sum(costs.values()), disable=None, leave=False, bar_format=_CELLS) as bar:

        def advance(cell: "Cell") -> None:
            bar.update(costs.pop(cell.key, 0))

        yield advance


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
def preview(pipeline: Pipeline, folder: Path) -> Iterator[Callable[[Step], None]]:
    """Give a function that shows steps in ``preview_file``; in the end the file goes.

    They are decoded as often as costs little, and in between by what was learnt from the last decoding of the
    same picture.

    Raises:
        InputError: the file cannot be written.
    """
    path = preview_file(folder)
    if path.stem != PREVIEW:
        click.echo(f"preview: {click.format_filename(path)}", err=True)
    mark = PngImagePlugin.PngInfo()
    mark.add_text(_PREVIEW_MARK, "a preview, which goes when the picture is finished")
    due = {"decoding": 0.0, "sketch": 0.0}
    sketch: LinearDecoder | None = None

    def show(step: Step) -> None:
        nonlocal sketch, path
        if step.index == 0:  # of another picture than the one before
            sketch = None
        begin, latents = time.perf_counter(), step.denoised
        if begin >= due["decoding"]:
            way = "decoding"
            (image,) = pipeline.preview(latents)
            sketch = LinearDecoder(latents, to_pixels(image).to(latents.device))
        elif sketch is not None and begin >= due["sketch"]:
            way = "sketch"
            (image,) = to_images(sketch(latents))
        else:
            return
        path = preview_file(folder) if not _is_preview(path) else path
        with replacing(path, durable=False) as aside:
            image.save(aside, "PNG", compress_level=1, pnginfo=mark)
        end = time.perf_counter()
        due[way] = end + (end - begin) * (1 / PREVIEW_SHARE - 1)

    try:
        yield show
    finally:
        if _is_preview(path):
            path.unlink()
