"""Validation of external input by pydantic, with errors of one line.

A dataclass under ``@validated`` checks and converts its arguments by its annotations:

    @validated
    @dataclass(frozen=True, slots=True, kw_only=True)
    class LoopSettings:
        steps: Annotated[int, Range(1, 100_000_000)]
        optimizer: Annotated[str, OneOf("optimizer", OPTIMIZERS)] = "adamw"
        fsdp: Flag = False

Lists become tuples, and whole numbers become floats where the field is one. Nothing else is converted: text
is not a number, and neither are True and NaN. Rules about several fields stand in ``__post_init__``.

Importing pydantic takes as long as a third of ``ssd1b --help``, so it is imported when the first value is
validated.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from numbers import Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ssd1b.errors import InputError, prefix_errors, shown, unknown

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import ErrorDetails
    from pydantic_core.core_schema import CoreSchema

T = TypeVar("T")

MAX_TEXT = 10_000
"""Maximum length of a text, in characters; a longer prompt is a mistake or an attack."""


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Bounds, both inclusive, of an ``int`` or a ``float``, or of both numbers of a pair.

    Attributes:
        low: the smallest.
        high: the largest.
        multiple_of: whole numbers must be multiples of it.
        why: the reason for the bounds, where it is not obvious.
    """

    low: int | float
    high: int | float
    multiple_of: int = 1
    why: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Build pydantic's schema, with one message for everything that can be wrong with a value."""
        from pydantic_core import core_schema

        bounds = f"from {self.low} to {self.high}{self.why and f' ({self.why})'}"
        if int in (source, *get_args(source)):
            number: CoreSchema = core_schema.int_schema(
                ge=int(self.low), le=int(self.high), multiple_of=self.multiple_of, strict=True
            )
            kind = "whole number" if self.multiple_of == 1 else f"multiple of {self.multiple_of}"
        else:
            number = core_schema.float_schema(ge=self.low, le=self.high, allow_inf_nan=False, strict=True)
            kind = "number"
        number = core_schema.no_info_before_validator_function(_plain, number)
        message = f"it must be a {kind} {bounds}"
        if get_origin(source) is tuple:
            number, message = core_schema.tuple_schema([number, number]), f"it must be two {kind}s {bounds}"
        return core_schema.custom_error_schema(number, "range", custom_error_message=message)


def _plain(value: Any) -> Any:
    """Convert numpy's numbers to Python's."""
    convert = getattr(value, "item", None)
    return convert() if convert and isinstance(value, Real) else value


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """A rule applied after the type that precedes it in the annotation.

    Attributes:
        rule: raises InputError for a value that is not allowed.
    """

    rule: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Build a schema that applies the rule last."""
        from pydantic_core import core_schema

        def checked(value: Any) -> Any:
            self.rule(value)
            return value

        return core_schema.no_info_after_validator_function(checked, handler(source))


@dataclass(frozen=True, slots=True, eq=False)
class OneOf:
    """The valid values of a ``str``; the error for any other suggests the nearest.

    Attributes:
        kind: what is named, such as "sampler".
        names: the valid names.
    """

    kind: str
    names: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Build a schema that compares a text with the names."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._known, handler.generate_schema(Text))

    def _known(self, value: str) -> str:
        if value not in self.names:
            raise unknown(self.kind, value, self.names)
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Bounds of the length of a ``tuple``, whose validation ends with the first error.

    Attributes:
        fewest: minimum length.
        most: maximum length.
    """

    fewest: int
    most: int

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Add the bounds to pydantic's own schema."""
        schema: Any = handler(source)
        return schema | {"min_length": self.fewest, "max_length": self.most, "fail_fast": True}


@dataclass(frozen=True, slots=True)
class _Fields:
    """The values of a dataclass's fields, some of which may be missing."""

    kind: type

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Build a schema of all fields."""
        from pydantic_core import core_schema

        return core_schema.typed_dict_schema({
            name: core_schema.typed_dict_field(handler.generate_schema(hint), required=False)
            for name, hint in _hints(self.kind).items()
        })  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Strict:
    """Options of a ``str`` or ``bool`` that is not converted from another type."""

    options: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Add the options to pydantic's own schema."""
        schema: Any = handler(source)
        return schema | {"strict": True, **self.options}


_TEXT = {"max_length": MAX_TEXT, "pattern": r"^[^\x00]*$"}

Text = Annotated[str, _Strict(_TEXT)]
"""Text that is valid for tokenizers, files and terminals; may be empty."""

Name = Annotated[str, _Strict({**_TEXT, "min_length": 1})]
"""Nonempty text."""

Flag = Annotated[bool, _Strict({})]
"""True or false; 1 and "true" are refused."""


def validated(kind: type[T]) -> type[T]:
    """Make a dataclass of keyword-only fields check and convert its arguments by its annotations.

    The InputError it raises says which argument is wrong, what was given and what is allowed. A field of
    another validated class accepts a table (any mapping), too.
    """
    assign = kind.__init__
    has_required = any(_required(kind))

    def __init__(self: Any, **values: Any) -> None:
        # Defaults alone need no check, so pydantic is not imported for them.
        assign(self, **(validate(kind, values) if values or has_required else {}))

    def schema(source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import PydanticCustomError, core_schema

        def read(value: Any) -> Any:
            if isinstance(value, kind):
                return value
            if not isinstance(value, Mapping):
                raise PydanticCustomError("table", "it must be a table")
            try:
                return kind(**value)
            except InputError as error:
                raise PydanticCustomError("nested", "{message}", {"message": str(error)}) from None

        return core_schema.no_info_plain_validator_function(read)

    kind.__init__ = __init__
    setattr(kind, "__get_pydantic_core_schema__", staticmethod(schema))  # noqa: B010 (unknown to the type)
    return kind


def parse(kind: type[T], table: object, where: str) -> T:
    """Build an instance of a validated class from a parsed TOML or JSON table.

    Args:
        kind: the class.
        table: the parsed table.
        where: name of the table in errors.

    Raises:
        InputError: it is not a table, a key is missing or unknown, or a value is not allowed.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where} is {shown(table)}: it must be a table")
    with prefix_errors(where):
        return kind(**table)


def validate(kind: type, values: Mapping[str, object], *, partial: bool = False) -> dict[str, Any]:
    """Check and convert values by the annotations of a dataclass's fields.

    Args:
        kind: the dataclass.
        values: values by field name.
        partial: allow required fields to be missing.

    Raises:
        InputError: a name is unknown or missing, or a value is not allowed.
    """
    hints = _hints(kind)
    for name in values:
        if name not in hints:
            raise unknown("key", name, hints)
    for name in () if partial else _required(kind):
        if name not in values:
            raise InputError(f"{name} is missing")
    try:
        return _table_adapter(kind).validate_python(values)
    except ValueError:  # again, one by one: the first wrong value is reported
        return {name: _checked(name, value, _adapter(hints[name])) for name, value in values.items()}


def check(name: str, value: object, hint: Any) -> Any:
    """Check and convert one value.

    Args:
        name: name of the value in errors.
        value: the value.
        hint: its annotation, such as ``Annotated[int, Range(1, 1000)]``.

    Raises:
        InputError: the value is not allowed.
    """
    return _checked(name, value, _adapter(hint))


def _checked(name: str, value: object, adapter: "TypeAdapter[Any]") -> Any:
    try:
        return adapter.validate_python(value)
    except ValueError as error:
        from pydantic import ValidationError  # here, because an import takes as long as the check

        assert isinstance(error, ValidationError)
        raise InputError(_sentence(name, value, error.errors(include_url=False))) from None


def plain_type(hint: Any) -> tuple[Any, tuple[object, ...]]:
    """Split an annotation like ``Annotated[int, ...] | None`` into the class (``int``) and all metadata."""
    if get_origin(hint) is Annotated:
        plain, metadata = plain_type(hint.__origin__)
        return plain, (*metadata, *hint.__metadata__)
    if get_origin(hint) in (Union, UnionType):
        return plain_type(next(each for each in get_args(hint) if each is not NoneType))
    return get_origin(hint) or hint, ()


@lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@lru_cache(maxsize=1024)
def _adapter(hint: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


@lru_cache(maxsize=256)
def _table_adapter(kind: type) -> "TypeAdapter[Any]":
    """An adapter for a dictionary of any of the fields: faster than one for each field."""
    return _adapter(Annotated[dict[str, Any], _Fields(kind)])


@lru_cache(maxsize=256)
def _required(kind: Any) -> tuple[str, ...]:
    """Names of the fields without a default."""
    return tuple(each.name for each in fields(kind) if each.default is each.default_factory is MISSING)


_NO_TEXT = "it has an invalid character: a null, or no Unicode (a command line must be UTF-8)"

_WORDS = {
    "bool_parsing": "it must be true or false",
    "bool_type": "it must be true or false",
    "dict_type": "it must be a table",
    "float_parsing": "it must be a number",
    "float_type": "it must be a number",
    "greater_than_equal": "it must be at least {ge}",
    "int_from_float": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_type": "it must be a whole number",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "it must be {expected}",
    "mapping_type": "it must be a table",
    "string_pattern_mismatch": _NO_TEXT,
    "string_too_long": "at most {max_length} characters are allowed",
    "string_too_short": "it must not be empty",
    "string_type": "it must be text",
    "string_unicode": _NO_TEXT,
    "too_long": "at most {max_length} items are allowed",
    "too_short": "it must have at least {min_length} items",
    "tuple_type": "it must be a list",
}
"""Messages for pydantic's error types; errors raised in this module have their own."""


def _sentence(name: str, value: Any, errors: "list[ErrorDetails]") -> str:
    """Write a message that says which value is wrong, what was given and what is allowed.

    pydantic reports an error for each branch of a union; those that got deepest into the value are reported.
    """
    paths = [_path(each["loc"], value) for each in errors]
    deepest_path = max(paths, key=len)
    deepest = [each for each, path in zip(errors, paths, strict=True) if path == deepest_path]
    for step in deepest_path:
        name += f"[{step}]" if isinstance(step, int) else f".{step}"
        value = value[step]
    for each in deepest:
        if each["type"] == "value_error":  # raised by a rule, with a complete message
            return str(each.get("ctx", {})["error"])
        if each["type"] == "nested":
            return f"{name}: {each['msg']}"
    pieces = list(dict.fromkeys(map(words, deepest)))
    others = [piece.removeprefix("it must be ") for piece in pieces[1:]]
    return f"{name} is {shown(value)}: {' or '.join([pieces[0], *others])}"


def words(error: "ErrorDetails | Mapping[str, Any]") -> str:
    """Say what is allowed, for an error of pydantic."""
    known = _WORDS.get(error["type"])
    return known.format_map(error.get("ctx", {})) if known else error["msg"]


def _path(steps: tuple[int | str, ...], value: Any) -> list[int | str]:
    """Keep pydantic's steps that are keys or indices of the value; the others name branches of unions."""
    path: list[int | str] = []
    for step in steps:
        if _leads_into(value, step):
            path.append(step)
            value = value[step]
    return path


def _leads_into(value: Any, step: int | str) -> bool:
    if isinstance(value, Mapping):
        return step in value
    return isinstance(value, list | tuple) and isinstance(step, int) and step < len(value)
