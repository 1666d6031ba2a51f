"""Commands that check the text of every option."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import click

from ssd1b.errors import InputError, shown
from ssd1b.extras import require
from ssd1b.numerals import number, whole_number


class _Parsed(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] (generic from click 8.2)
    """An option type with a parser that raises InputError."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a string; defaults have their type already."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


def _name(text: str) -> str:
    if not text.strip():
        raise InputError("it is empty")
    if len(text) > LONGEST:
        raise InputError(f"{shown(text)} has {len(text)} characters: allowed are {LONGEST}")
    return text


LONGEST = 4096
"""Most characters of a name or path: Linux's PATH_MAX."""

TEXT = _Parsed("text", str)
"""For free text, such as prompts, which may be empty. Other strings are names or paths and may not."""

_STRICT: dict[Any, Any] = {
    click.INT: _Parsed("integer", whole_number),
    click.FLOAT: _Parsed("float", number),
    click.STRING: _Parsed("text", _name),
}
"""Replacements of click's own types."""


AGAIN = "what is finished is kept, and the same command continues"
"""How to continue what keeps its parts in a store."""

RESUME = "the same command with --resume continues"
"""How to continue an interrupted training."""

Needs: TypeAlias = Sequence[str] | Callable[[Mapping[str, Any]], Sequence[str]]


class Command(click.Command):
    """A command whose numbers are in plain digits and whose names are not empty.

    Args:
        *args: of ``click.Command``.
        needs: required libraries of ``ssd1b.extras``, or a function that returns them for the arguments of a
            call; checked before the command runs.
        continues: how to continue after Ctrl-C; None if nothing is kept.
        **kwargs: of ``click.Command``.
    """

    def __init__(self, *args: Any, needs: Needs = (), continues: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needs = needs
        self.continues = continues
        for parameter in self.params:
            parameter.type = _STRICT.get(parameter.type, parameter.type)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            InputError: a library is missing; or as the command.
            KeyboardInterrupt: its argument, if any, says how to continue.
        """
        require(ctx.command_path, *(self.needs(ctx.params) if callable(self.needs) else self.needs))
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*[self.continues] * (self.continues is not None)) from None
