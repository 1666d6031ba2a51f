"""``ssd1b serve``: an HTTP server with a page."""

from dataclasses import fields
from typing import Any, get_type_hints

import click

from ssd1b.cli.command import Command
from ssd1b.cli.paths import OUT_FOLDER, PATH
from ssd1b.extras import EXTRAS
from ssd1b.server.options import OPTIONS, ServerOptions, read_options
from ssd1b.validation import plain_type


def _options(command: Any) -> Any:
    """Add an option for each field of ``ServerOptions``."""
    # Not from an instance, whose checks would import pydantic for ``--help``.
    defaults = {field.name: field.default for field in fields(ServerOptions)}
    for name, option in reversed(list(OPTIONS.items())):
        flag, default = f"--{name.replace('_', '-')}", defaults[name]
        about: dict[str, Any] = {"help": option.help, "default": None}
        if not option.metavar:
            about |= {"is_flag": True}
        elif isinstance(default, tuple):
            about |= {"metavar": option.metavar, "multiple": True}
        else:
            kind = _kind(name, option.metavar)
            about |= {"metavar": option.metavar, "type": kind}
            if default is not None:
                about["help"] += f"  [default: {default}]"
        command = click.option(flag, name, **about)(command)
    return command


def _kind(name: str, metavar: str) -> Any:
    if metavar in ("FOLDER", "FILE"):
        return OUT_FOLDER if name == "store" else PATH
    return plain_type(get_type_hints(ServerOptions, include_extras=True)[name])[0]


@click.command("serve", cls=Command, needs=EXTRAS["server"])
@_options
@click.option(
    "--config", metavar="FILE", type=PATH, help="A .toml or .json file with these options; flags override it."
)
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
def command(config: str | None, open_page: bool, **given: Any) -> None:
    """Serve images over HTTP: a page, a native API, and those of OpenAI and AUTOMATIC1111.

    The server listens on the loopback and offers the built-in model, unless you say otherwise. Jobs, images
    and recipes are kept in --store, and a server that was stopped continues with what was waiting.

    \b
    Examples:
      ssd1b serve --open
      ssd1b serve --model ssd-1b --model mini-ssd-1b --store images
      ssd1b serve --host 0.0.0.0 --allow-host images.example.org --api-key-file keys.toml
    """  # noqa: D301 (\b keeps click from wrapping)
    # 0 is a value: it is equal to False, but not the same.
    named = {name: value for name, value in given.items() if value not in (None, ()) and value is not False}
    options = read_options(config, named)
    from ssd1b.server.run import run

    run(options, open_page=open_page)
