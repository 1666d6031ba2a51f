"""Paths on the command line: checked before any work, and printed so that programs can read them."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from ssd1b.errors import InputError, printable
from ssd1b.files import expand_path
from ssd1b.saving import check_folder, check_renewable


class PathType(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """A valid path as a string, with ``~`` expand_path."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check a path; errors are reported as errors of the option."""
        try:
            return self.checked(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)

    def checked(self, text: str) -> str:
        """Return the path; raises as ``expand_path``."""
        return expand_path(text)


class OutFolder(PathType):
    """A folder that can be written or created; nothing is created yet."""

    def checked(self, text: str) -> str:
        """Return the folder; raises as ``expand_path`` and ``check_folder``."""
        path = super().checked(text)
        check_folder(Path(path))
        return path


class PathOrURL(PathType):
    """A path, or a URL of fsspec such as s3://bucket/folder."""

    def checked(self, text: str) -> str:
        """Return either; raises as ``expand_path``."""
        return text if "://" in text else super().checked(text)


PATH, OUT_FOLDER, PATH_OR_URL = PathType(), OutFolder(), PathOrURL()


def out_option(help: str, *, required: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Pass a command ``out``, the folder that it writes to."""
    return click.option("--out", type=OUT_FOLDER, metavar="FOLDER", required=required, help=help)


def overwrite_option(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``overwrite``."""
    return click.option(
        "--overwrite",
        is_flag=True,
        help="Also replace files that ssd1b did not write, or that were changed since.",
    )(command)


def check_outputs(folder: str | Path | None, names: Iterable[str], *, overwrite: bool) -> None:
    """Check before the work that ``saving.renewing`` can write these files; does nothing without a folder.

    Raises:
        InputError: it cannot.
    """
    if folder is not None:
        for name in names:
            check_renewable(Path(folder, name), overwrite=overwrite)


def echo_path(path: str | Path) -> None:
    """Print a path: its exact bytes for a program, escaped for a terminal."""
    click.echo(printable(str(path)) if sys.stdout.isatty() else os.fsencode(path))
