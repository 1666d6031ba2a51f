"""``ssd1b models``: the models that have a name."""

from dataclasses import asdict

import click

from ssd1b.cli.command import Command
from ssd1b.cli.table import columns, json_line


@click.command("models", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each model.")
def command(as_json: bool) -> None:
    """List the models that have a name: built in, published under a short name, or in the hub's cache.

    Ready models need no network. Others are downloaded on first use. --model also takes folders in diffusers'
    format, single safetensors files and hub ids.
    """
    from ssd1b.weights.hub import available_models

    listed = available_models()
    if as_json:
        for each in listed:
            click.echo(json_line(asdict(each)))
        return
    rows = [(each.name, each.source, "ready" if each.ready else "not downloaded") for each in listed]
    click.echo(columns([("NAME", "SOURCE", "STATE"), *rows]))
