"""Messages on standard error."""

import warnings
from collections import Counter

import click

from ssd1b.errors import line

SOME_FAILED = 1
"""Exit code of a command that did all it could, but some images failed."""

SHOWN_REASONS = 10
"""Most reasons for failures that are printed."""


def notify(message: str) -> None:
    """Announce a step that takes long."""
    click.echo(f"{message} ...", err=True)


def warn(message: str) -> None:
    """Print a warning as one line."""
    click.echo(line(f"warning: {message}"), err=True)


def print_advice(message: str) -> None:
    """Print advice as one line."""
    click.echo(line(f"advice: {message}"), err=True)


def report_failures(failed: Counter[str], of: str, advice: str, *, most: int | None = SHOWN_REASONS) -> None:
    """Print why images failed, the commonest reason first; if any did, end the command with ``SOME_FAILED``.

    Args:
        failed: their number by reason.
        of: how many there are, such as "8 rows".
        advice: where all reasons are, or what to do.
        most: reasons to print; None for all.
    """
    if not failed:
        return
    for reason, count in failed.most_common(most):
        click.echo(f"{count} failed: {reason}", err=True)
    if most is not None and len(failed) > most:
        click.echo(f"and others for {len(failed) - most} more reasons", err=True)
    click.echo(f"{failed.total()} of {of} failed: {advice}", err=True)
    click.get_current_context().exit(SOME_FAILED)


def format_warnings() -> None:
    """Print the warnings of this process as one line each."""
    warnings.formatwarning = _format


def _format(message: object, *where: object, **source: object) -> str:
    return f"warning: {line(str(message))}\n"
