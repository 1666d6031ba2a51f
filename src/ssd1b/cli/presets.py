"""``ssd1b presets``: named settings, each with its evidence."""

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ssd1b.cli.command import Command
from ssd1b.cli.messages import warn
from ssd1b.cli.paths import PATH, echo_path
from ssd1b.errors import ConflictError, InputError, shown, unknown
from ssd1b.finetune.presets import PRESETS as FINETUNE_PRESETS
from ssd1b.finetune.presets import nested
from ssd1b.presets import PRESETS, as_toml, load_preset, users_files, users_folder
from ssd1b.saving import writing
from ssd1b.settings import Preset
from ssd1b.table_files import READERS

_NAME = re.compile(r"[\w-][\w.-]{0,99}")

_LINE = 100
_SHOWN = 60
"""Most characters of a setting's text in the list."""


@click.command("presets", cls=Command)
@click.argument("name", required=False, metavar="[NAME|FILE]")
@click.option("--keep", type=PATH, metavar="FILE", help="Add a preset's file to your own presets.")
@click.option("--name", "name_kept", metavar="NAME", help="Name for --keep.")
@click.option("--finetune", is_flag=True, help="Those of ssd1b finetune instead of those of images.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each preset.")
def command(
    name: str | None, keep: str | None, name_kept: str | None, finetune: bool, as_json: bool
) -> None:  # fmt: skip
    """List the presets: the article's, the model card's, those found by tuning, and your own.

    Each is listed with its evidence: its source, or what was measured. With a NAME, print that preset as a
    file for --preset. --keep adds a file, such as one that ssd1b tune wrote, to your own presets.

    With --finetune the presets are those of ssd1b finetune --preset, and the file is one for its --file.

    \b
    Examples:
      ssd1b presets
      ssd1b presets article-detail > mine.toml
      ssd1b presets --keep tuned/preset.json --name crisp
      ssd1b generate "a lighthouse at dusk" --preset crisp
      ssd1b presets --finetune
    """  # noqa: D301 (\b keeps click from wrapping)
    if keep is not None and name is not None:
        raise InputError("give a name to show or --keep, not both")
    if keep is None and name_kept is not None:
        raise InputError("--name is only for --keep")
    if keep is not None and finetune:
        raise InputError("--keep is not for presets of --finetune: they are files for ssd1b finetune --file")
    if finetune:
        _finetune(name, as_json)
    elif keep is not None:
        echo_path(_keep(Path(keep), name_kept))
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
            warn(f"left out: {error}")
    for name, (where, preset) in listed.items():
        _show(name, where, preset.source, preset.settings, as_json)


def _show(name: str, where: str, source: str, settings: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        about = {"name": name, "where": where, "source": source, "settings": dict(settings)}
        click.echo(json.dumps(about, ensure_ascii=False))
    else:
        click.echo(name if where == "built in" else f"{name} ({where})")
        for line in (_settings(settings), source or "no evidence"):
            click.echo(textwrap.fill(line, _LINE, initial_indent="    ", subsequent_indent="      "))


def _finetune(name: str | None, as_json: bool) -> None:
    """List the presets of fine-tunings, or print one as a file of settings."""
    import tomli_w

    if name is None:
        for each, preset in FINETUNE_PRESETS.items():
            _show(each, "built in", preset.source, preset.settings, as_json)
    elif name not in FINETUNE_PRESETS:
        raise unknown("preset", name, FINETUNE_PRESETS)
    else:
        source, settings = FINETUNE_PRESETS[name]
        about = textwrap.fill(source, _LINE, initial_indent="# ", subsequent_indent="# ")
        click.echo(f"{about}\n{tomli_w.dumps(nested(settings))}", nl=False)


def _settings(settings: Mapping[str, Any]) -> str:
    def short(value: Any) -> str:
        text = f"“{value}”" if isinstance(value, str) else str(value)
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 2]}…”"

    return ", ".join(f"{name} {short(value)}" for name, value in settings.items())


def _keep(path: Path, name: str | None) -> Path:
    """Copy a preset's file to the user's own, under an unused name."""
    if path.suffix.lower() not in READERS:
        raise InputError(f"cannot keep {str(path)!r}: a preset is a .toml or .json file")
    preset = load_preset(str(path))
    preset = replace(preset, name=preset.name if name is None else name)
    if not _NAME.fullmatch(preset.name) or Path(preset.name).suffix.lower() in READERS:
        raise InputError(f"name is {shown(preset.name)}: allowed are letters, digits, '-', '_' and '.'")
    existing = "built in" if preset.name in PRESETS else users_files().get(preset.name)
    if existing is not None:
        raise ConflictError(f"preset {preset.name!r} exists already ({existing}): take another --name")

    kept = users_folder() / f"{preset.name}.toml"
    with writing(kept) as aside:
        aside.write_text(as_toml(preset), encoding="utf-8")
    return kept
