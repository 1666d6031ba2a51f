"""Messages on standard error."""

import warnings

import click

from ssd1b.errors import line


def notify(message: str) -> None:
    """Announce a step that takes long."""
    click.echo(f"{message} ...", err=True)


def warn(message: str) -> None:
    """Print a warning as one line."""
    click.echo(line(f"warning: {message}"), err=True)


def format_warnings() -> None:
    """Print the warnings of this process as one line each."""
    warnings.formatwarning = _format


def _format(message: object, *where: object, **source: object) -> str:
    return f"warning: {line(str(message))}\n"
