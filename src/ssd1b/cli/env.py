"""``ssd1b env``: machine and installation, for bug reports."""

import click

from ssd1b.cli.command import Command
from ssd1b.cli.table import columns, json_line


@click.command("env", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Print versions, devices, number formats, threads, extras and cached models, for a bug report.

    The output has no tokens, no paths and no user names. It does name the models in the hub's cache; remove
    those that are private before you publish it.
    """
    from ssd1b.bench.environment import environment

    found = environment()
    if as_json:
        click.echo(json_line(found))
        return
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        shown: list[str] = (value or ["none"]) if isinstance(value, list) else [str(value)]
        rows += zip([name, *[""] * (len(shown) - 1)], shown, strict=True)
    click.echo(columns(rows))
