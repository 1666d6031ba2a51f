"""Strict tables: what is not known, not there or of another kind is named."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ssd1b.errors import InputError
from ssd1b.tables import MAX_FILE_BYTES, checked, made, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    number: int
    rate: float | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    rows: tuple[tuple[int, ...], ...] = ()
    kind: Literal["a", "b"] = "a"
    named: Mapping[str, tuple[int, ...]] | None = None


def test_lists_become_tuples_and_whole_numbers_do_for_fractions() -> None:
    table = {"number": 3, "rate": 1, "pair": [0.9, 1], "rows": [[1], []], "named": {"x": [1, 2]}}
    assert made(Example, table, "here") == Example(
        number=3, rate=1.0, pair=(0.9, 1.0), rows=((1,), ()), named={"x": (1, 2)}
    )
    read = made(Example, table, "here")
    assert [type(each) for each in (read.number, read.rate, *read.pair)] == [int, float, float, float]
    assert checked(Example, {"kind": "b"}, "here") == {"kind": "b"}, "not every field need be there"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"nmber": 3}, "unknown key in here 'nmber': did you mean 'number'"),
        ({}, "here lacks the key 'number'"),
        ({"number": True}, "number in here must be a whole number, got True"),
        ({"number": 1.5}, "must be a whole number"),
        ({"number": 1, "rate": float("nan")}, "rate in here must be a number"),
        ({"number": 1, "rate": float("inf")}, "rate in here must be a number"),
        ({"number": 1, "rate": 10**400}, "rate in here must be a number, got 1000"),
        ({"number": 1, "pair": [1.0, -(10**400)]}, "a list, 2 of a number each"),
        ({"number": 1, "pair": [1.0]}, "a list, 2 of a number each"),
        ({"number": 1, "rows": [["x"]]}, "rows"),
        ({"number": 1, "kind": "c"}, "'a' or 'b'"),
        ([], "here must be a table"),
    ],
)
def test_what_is_wrong_is_named(table: object, words: str) -> None:
    with pytest.raises(InputError) as caught:
        made(Example, table, "here")
    assert words in str(caught.value)


def test_files_that_are_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(InputError, match=r"cannot read .*x\.toml: No such file"):
        read_table(path)
    path.write_text("a = ")
    with pytest.raises(InputError, match=r"x\.toml is no TOML"):
        read_table(path)
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(InputError, match="too large"):
        read_table(path)


@pytest.mark.parametrize("name", ["x.toml", "x.json"])
def test_numbers_of_thousands_of_digits(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(f"a = {'9' * 5000}" if name.endswith("toml") else f'{{"a": {"9" * 5000}}}')
    with pytest.raises(InputError, match="a number has thousands of digits"):
        read_table(path)


@pytest.mark.parametrize(("name", "text"), [("x.toml", "a = 'ö'"), ("x.json", '{"a": "ö"}')])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_byte_order_mark_are_read(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_table(tmp_path / name) == {"a": "ö"}
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="no text in UTF-8"):
        read_table(tmp_path / name)
