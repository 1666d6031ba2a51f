"""Paths on the command line: checked before any work, and what may be overwritten."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from ssd1b.errors import InputError, printable
from ssd1b.files import expand_path
from ssd1b.saving import check_folder, check_renewable


class PathType(click.ParamType):
    """A path that the file system can hold, with ``~`` replaced; it stays a text."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check a path; what is wrong with it is an error of the option."""
        try:
            return self.checked(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)

    def checked(self, text: str) -> str:
        """Give the path that a text names; raises as ``expand_path``."""
        return expand_path(text)


class OutFolder(PathType):
    """A folder that can be written, or made; nothing is made yet."""

    def checked(self, text: str) -> str:
        """Give the folder that a text names; raises as ``expand_path`` and ``check_folder``."""
        path = super().checked(text)
        check_folder(Path(path))
        return path


PATH, OUT_FOLDER = PathType(), OutFolder()


def overwrite_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument ``overwrite``."""
    return click.option(
        "--overwrite", is_flag=True, help="Write also over files that ssd1b did not write, or you changed."
    )(command)


def check_outputs(folder: str | Path | None, names: Iterable[str], *, overwrite: bool) -> None:
    """Find out before the work whether ``saving.renewing`` could write these files; None is no folder.

    Raises:
        InputError: it could not.
    """
    if folder is not None:
        for name in names:
            check_renewable(Path(folder, name), overwrite=overwrite)


def echo_path(path: str | Path) -> None:
    """Print a path on a line: its very bytes for a program that reads them, escaped for a terminal."""
    click.echo(printable(str(path)) if sys.stdout.isatty() else os.fsencode(path))
