"""``ssd1b presets``: settings that have a name, each with its evidence."""

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ssd1b.cli.command import Command
from ssd1b.cli.paths import PATH, echo_path
from ssd1b.errors import ConflictError, InputError, shown
from ssd1b.presets import PRESETS, as_toml, load_preset, users_files, users_folder
from ssd1b.saving import writing
from ssd1b.settings import Preset
from ssd1b.table_files import READERS

_NAME = re.compile(r"[\w-][\w.-]{0,99}")

_LINE = 100
_LONGEST = 60
"""Letters of a setting's text in the list."""


@click.command("presets", cls=Command)
@click.argument("name", required=False, metavar="[NAME|FILE]")
@click.option("--keep", type=PATH, metavar="FILE", help="Copy a preset's file to your own presets.")
@click.option("--name", "name_kept", metavar="NAME", help="Keep it under this name.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each preset.")
def command(name: str | None, keep: str | None, name_kept: str | None, as_json: bool) -> None:
    """List the presets: the article's and the model card's, those found by tuning, and your own.

    Each stands with its evidence: where it comes from, or what was measured. With a NAME it is printed as a
    file that --preset takes. --keep adds a file, as ssd1b tune writes it, to your own.

    \b
    Examples:
      ssd1b presets
      ssd1b presets article-detail > mine.toml
      ssd1b presets --keep tuned/preset.json --name crisp
      ssd1b generate "a lighthouse at dusk" --preset crisp
    """  # noqa: D301 (\b keeps click from wrapping)
    if keep is not None and name is not None:
        raise InputError("give a name to show or --keep, not both")
    if keep is None and name_kept is not None:
        raise InputError("--name is for --keep: it says under which name to keep a file")
    if keep is not None:
        echo_path(_kept(Path(keep), name_kept))
    elif name is not None:
        click.echo(as_toml(load_preset(name)), nl=False)
    else:
        _list(as_json)


def _list(as_json: bool) -> None:
    listed: dict[str, tuple[str, Preset]] = {name: ("built in", each) for name, each in PRESETS.items()}
    for name, path in users_files().items():
        try:
            listed.setdefault(name, (str(path), load_preset(str(path))))
        except InputError as error:
            click.echo(f"left out: {error}", err=True)
    for name, (where, preset) in listed.items():
        if as_json:
            about = {"name": name, "where": where, "source": preset.source, "settings": dict(preset.settings)}
            click.echo(json.dumps(about, ensure_ascii=False))
        else:
            click.echo(name if where == "built in" else f"{name} ({where})")
            for line in (_settings(preset.settings), preset.source or "no evidence"):
                click.echo(textwrap.fill(line, _LINE, initial_indent="    ", subsequent_indent="      "))


def _settings(settings: Mapping[str, Any]) -> str:
    def told(value: Any) -> str:
        text = f"“{value}”" if isinstance(value, str) else str(value)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]}…”"

    return ", ".join(f"{name} {told(value)}" for name, value in settings.items())


def _kept(path: Path, name: str | None) -> Path:
    """Copy a preset's file to the user's own, under a name that no other has."""
    if path.suffix.lower() not in READERS:
        raise InputError(f"cannot keep {str(path)!r}: a preset is a .toml or .json file")
    preset = load_preset(str(path))
    preset = replace(preset, name=preset.name if name is None else name)
    if not _NAME.fullmatch(preset.name) or Path(preset.name).suffix.lower() in READERS:
        raise InputError(f"name is {shown(preset.name)}: allowed are letters, digits, '-', '_' and '.'")
    there = "built in" if preset.name in PRESETS else users_files().get(preset.name)
    if there is not None:
        raise ConflictError(f"there is a preset {preset.name!r} already ({there}): take another --name")

    kept = users_folder() / f"{preset.name}.toml"
    with writing(kept) as aside:
        aside.write_text(as_toml(preset), encoding="utf-8")
    return kept
