"""Write the references of the command line and the Python API, from click's commands and from docstrings.

    python tools/reference.py

``tests/contracts/test_reference.py`` checks that the pages in ``docs/reference`` are current.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import griffe

from ssd1b.cli.app import cli

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"

_NOTE = "<!-- Written by tools/reference.py; do not edit. -->"

_WIDE = 10_000
"""Columns; no line of click's help is wrapped."""


def command_line() -> str:
    """Write the reference of all commands, in the order of ``ssd1b --help``."""
    root = click.Context(cli, info_name="ssd1b")
    parts = [_NOTE, "# Command line", _prose(cli.help or "")]
    parts += [_command(command, context) for command, context in _commands(cli, root)]
    return "\n\n".join(parts) + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Give a group's commands with their contexts, each group before its own commands."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        yield command, inner
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _command(command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    rows = [_option(each, context) for each in command.get_params(context) if isinstance(each, click.Option)]
    return "\n\n".join([
        f"## {context.command_path}",
        f"    {context.command_path} {usage}",
        _prose(command.help or ""),
        "\n".join(["| option | meaning |", "|---|---|", *rows]),
    ])  # fmt: skip


def _option(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None
    names, text = (each.replace("|", "\\|") for each in record)
    return f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {_escaped(text)} |"


def _prose(text: str) -> str:
    r"""Turn a command's help into Markdown: paragraphs, and code where click keeps lines (``\b``)."""
    paragraphs = []
    for each in text.strip().split("\n\n"):
        if each.lstrip().startswith("\b"):
            title, *lines = each.split("\b\n", 1)[1].split("\n")
            paragraphs += [title.strip(), "\n".join(f"    {line.strip()}" for line in lines)]
        else:
            paragraphs.append(_escaped(" ".join(each.split())))
    return "\n\n".join(paragraphs)


def _escaped(text: str) -> str:
    """Keep Markdown from interpreting ``*`` and ``<`` in plain text."""
    return re.sub(r"([*<])", r"\\\1", text)


def python() -> str:
    """Write the reference of all names that the package exports, from the docstrings alone."""
    package = griffe.load("ssd1b", search_paths=[ROOT / "src"], resolve_aliases=True)
    names = sorted(str(name) for name in package.exports or [] if not str(name).startswith("_"))
    parts = [_NOTE, "# Python API", _text(package.docstring.value if package.docstring else "")]
    return "\n\n".join([*parts, *(_object(package[name]) for name in names)]) + "\n"


def _object(found: Any, heading: str = "##") -> str:
    """Write a class with its public methods, or a function."""
    found = found.final_target if found.is_alias else found
    parts = [f"{heading} {_title(found)}", f"```python\n{_signature(found)}\n```", *_sections(found)]
    if found.is_class:
        public = (each for each in found.members.values() if each.is_function or _is_property(each))
        parts += [_object(each, "###") for each in public if not each.name.startswith("_") and each.docstring]
    return "\n\n".join(parts)


def _title(found: Any) -> str:
    return f"{found.parent.name}.{found.name}" if found.parent.is_class else found.name


def _is_property(found: Any) -> bool:
    return found.is_attribute and "property" in found.labels


def _signature(found: Any) -> str:
    if _is_property(found):
        return f"{found.name}: {found.annotation}"
    parameters = _parameters(found)
    head = f"class {found.name}" if found.is_class else found.name
    returned = "" if found.is_class or found.returns is None else f" -> {found.returns}"
    line = f"{head}({', '.join(parameters)}){returned}"
    if len(line) <= 100:
        return line
    inner = "".join(f"    {each},\n" for each in parameters)
    return f"{head}(\n{inner}){returned}"


def _parameters(found: Any) -> list[str]:
    """Write parameters as in the source, without ``self`` and ``cls``."""
    written, keyword_only = [], False
    for each in found.parameters:
        kind, name = each.kind.value if each.kind else "", each.name
        if name in ("self", "cls"):
            continue
        if kind == "keyword-only" and not keyword_only:
            keyword_only = True
            written.append("*")
        keyword_only = keyword_only or kind == "variadic positional"
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        text = f"{stars}{name}" + (f": {each.annotation}" if each.annotation else "")
        written.append(text + (f" = {each.default}" if each.default is not None and not stars else ""))
    return written


def _sections(found: Any) -> list[str]:
    """Write a docstring: text as it is, and its Google sections as lists."""
    return [_section(each) for each in found.docstring.parse("google")] if found.docstring else []


def _section(section: Any) -> str:
    if section.kind.value == "text":
        return _text(section.value)
    title = section.title or section.kind.value.capitalize()
    if section.kind.value == "admonition":
        return f"**{title}.** {_text(section.value.contents)}"
    return f"**{title}**\n\n" + "\n".join(_entry(each) for each in section.value)


def _entry(entry: Any) -> str:
    name = getattr(entry, "name", "") or (str(entry.annotation) if entry.annotation else "")
    description = " ".join(_text(entry.description).split())
    return f"- `{name}`: {description}" if name else f"- {description}"


def _text(text: str) -> str:
    """Write reStructuredText's literals as Markdown's."""
    return re.sub(r"``([^`]+)``", r"`\1`", text.strip())


def main() -> None:
    """Write both pages."""
    PAGES.mkdir(exist_ok=True)
    for name, text in (("cli.md", command_line()), ("python.md", python())):
        (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
