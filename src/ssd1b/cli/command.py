"""Commands that are strict about the text of every option, without each option asking for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import click

from ssd1b.errors import InputError, shown
from ssd1b.extras import require
from ssd1b.numerals import number, whole_number


class _Read(click.ParamType):
    """A type of option that is read by a function, which raises InputError."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a text; a default is of its type already."""
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
"""Characters of a name or a path: Linux's PATH_MAX."""

TEXT = _Read("text", str)
"""For words that may be empty, as a prompt; every other text is a name or a path, which may not."""

_STRICT: dict[click.ParamType, click.ParamType] = {
    click.INT: _Read("integer", whole_number),
    click.FLOAT: _Read("float", number),
    click.STRING: _Read("text", _name),
}
"""What stands for click's own types."""


Needs: TypeAlias = Sequence[str] | Callable[[Mapping[str, Any]], Sequence[str]]


class Command(click.Command):
    """A command whose numbers are written in plain digits and whose names are not empty.

    Args:
        *args: of ``click.Command``.
        needs: libraries that it cannot do without, from ``ssd1b.extras``, or a function that gives them for
            the arguments of a call; they are looked for before it begins.
        **kwargs: of ``click.Command``.
    """

    def __init__(self, *args: Any, needs: Needs = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needs = needs
        for parameter in self.params:
            parameter.type = _STRICT.get(parameter.type, parameter.type)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            InputError: a library is missing; or as the command.
        """
        require(ctx.command_path, *(self.needs(ctx.params) if callable(self.needs) else self.needs))
        return super().invoke(ctx)
