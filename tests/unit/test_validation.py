"""What is not known, not there, of another kind or not allowed is named in a line; limits come first."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.errors import InputError
from ssd1b.validation import (
    MAX_TEXT,
    Check,
    Flag,
    Items,
    Name,
    OneOf,
    Range,
    Text,
    check,
    parse,
    validate,
    validated,
)
from timing import at_most

Whole = Annotated[int, Range(0, 100)]


def even(pair: tuple[float, float]) -> None:
    if pair[0] > pair[1]:
        raise InputError("pair falls")


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    width: Annotated[int, Range(8, 64, multiple_of=8, why="blocks of 8")] = 8


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    number: Whole
    rate: Annotated[float, Range(0, sys.float_info.max)] | None = None
    pair: Annotated[tuple[float, float], Range(0, 1), Check(even)] = (0.0, 1.0)
    rows: Annotated[tuple[tuple[Whole, ...], ...], Items(0, 3)] = ()
    kind: Literal["a", "b"] = "a"
    mid: Whole | Literal["none"] = 0
    color: Annotated[str, OneOf("color", ("red", "green"))] = "red"
    named: Mapping[str, tuple[Whole, ...]] | None = None
    text: Text = ""
    name: Name = "x"
    on: Flag = False
    inner: Text | Inner = Inner()
    inners: tuple[Inner, ...] = ()


def test_lists_become_tuples_and_whole_numbers_do_for_fractions() -> None:
    table = {"number": 3, "rate": 1, "pair": [0.9, 1], "rows": [[1], []], "named": {"x": [1, 2]}}
    read = parse(Example, table, "here")
    assert read == Example(number=3, rate=1.0, pair=(0.9, 1.0), rows=((1,), ()), named={"x": (1, 2)})
    assert [type(each) for each in (read.number, read.rate, *read.pair)] == [int, float, float, float]
    assert validate(Example, {"kind": "b"}, partial=True) == {"kind": "b"}, "not every field need be there"


def test_a_table_may_stand_for_an_instance() -> None:
    read = parse(Example, {"number": 1, "inner": {"width": 16}, "inners": [{}, {"width": 24}]}, "here")
    assert (read.inner, read.inners) == (Inner(width=16), (Inner(), Inner(width=24)))
    assert replace(read, inner="text").inner == "text"


def test_numbers_of_numpy_become_plain_ones() -> None:
    read = Example(number=np.int64(3), rate=np.float32(0.5), pair=(np.float64(0.5), 1))  # type: ignore[arg-type]
    assert [type(each) for each in (read.number, read.rate, *read.pair)] == [int, float, float, float]


WRONG = [
    ({"nmber": 3}, "here: unknown key 'nmber': did you mean 'number'"),
    ({}, "here: number is missing"),
    ({"number": True}, "here: number is true: it must be a whole number from 0 to 100"),
    ({"number": 1.5}, "number is 1.5: it must be a whole number"),
    ({"number": 1.0}, "number is 1.0"),
    ({"number": "1"}, "number is '1'"),
    ({"number": 10**5000}, "number is a value that is too large (int)"),
    ({"number": -(10**30)}, "number is -1000"),
    ({"rate": math.nan}, "rate is nan: it must be a number from 0 to"),
    ({"rate": math.inf}, "rate is inf: it must be a number"),
    ({"rate": 10**400}, "rate is 1000"),
    ({"rate": "1"}, "rate is '1'"),
    ({"pair": [1.0, -(10**400)]}, "pair is [1.0, -1000"),
    ({"pair": [1.0]}, "pair is [1.0]: it must be two numbers from 0 to 1"),
    ({"pair": "01"}, "pair is '01': it must be two numbers"),
    ({"pair": [0.9, 0.1]}, "here: pair falls"),
    ({"rows": [["x"]]}, "rows[0][0] is 'x': it must be a whole number"),
    ({"rows": [[0], [1, 101]]}, "rows[1][1] is 101"),
    ({"rows": [[]] * 4}, "rows is [[], [], [], []]: at most 3 items are allowed"),
    ({"rows": {}}, "rows is {}: it must be a list"),
    ({"kind": "c"}, "kind is 'c': it must be 'a' or 'b'"),
    ({"mid": 101}, "mid is 101: it must be a whole number from 0 to 100 or 'none'"),
    ({"color": "gren"}, "here: unknown color 'gren': did you mean 'green'"),
    ({"color": 5}, "color is 5: it must be text"),
    ({"named": {"x": [1, -1]}}, "named.x[1] is -1"),
    ({"named": 5}, "named is 5: it must be a table"),
    ({"text": b"x"}, "text is b'x': it must be text"),
    ({"text": "x" * (MAX_TEXT + 1)}, f"at most {MAX_TEXT} characters are allowed"),
    ({"text": "a\0b"}, "text is 'a\\x00b': it has an invalid character"),
    ({"text": "\ud800"}, "text is '\\ud800': it has an invalid character"),
    ({"name": ""}, "name is '': it must not be empty"),
    ({"on": 1}, "on is 1: it must be true or false"),
    ({"on": "true"}, "on is 'true': it must be true or false"),
    ({"inner": 5}, "inner is 5: it must be text or a table"),
    ({"inner": {"width": 9}}, "inner: width is 9: it must be a multiple of 8 from 8 to 64 (blocks of 8)"),
    ({"inners": [{}, {"widht": 9}]}, "inners[1]: unknown key 'widht': did you mean 'width'"),
    ([], "here is []: it must be a table"),
]


@pytest.mark.parametrize("index", range(len(WRONG)))
def test_what_is_wrong_is_named(index: int) -> None:
    table, words = WRONG[index]
    if isinstance(table, dict) and table and "nmber" not in table:
        table = {"number": 1, **table}
    with pytest.raises(InputError) as caught:
        parse(Example, table, "here")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20)
    | st.sampled_from([10**4000, -(10**400), 2**63, 2**64, 1e308, [[]] * 1000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*Example.__dataclass_fields__, "other"]), JUNK, max_size=4))
def test_junk_is_read_or_refused_in_a_line(junk: dict[str, object]) -> None:
    try:
        assert replace(parse(Example, {"number": 1, **junk}, "here")) is not None
    except InputError as refused:
        assert "\n" not in str(refused) and len(str(refused)) < 1000


def test_deep_and_long_values_are_refused_in_little_time() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for name in ("number", "pair", "rows", "text", "named", "inner"):
        for value in (deep, [-1] * 100_000, [[[]]] * 100_000, "x" * 10_000_000):
            with at_most(5), pytest.raises(InputError):
                parse(Example, {"number": 1, name: value}, "here")


def test_one_value_alone() -> None:
    assert check("count", 5, Whole) == 5
    with pytest.raises(InputError, match="count is -1: it must be a whole number from 0 to 100"):
        check("count", -1, Whole)
