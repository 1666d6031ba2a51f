"""Files of settings, read with care."""

from pathlib import Path

import pytest

from ssd1b.errors import InputError
from ssd1b.table_files import MAX_FILE_BYTES, read_table


def test_files_that_are_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(InputError, match=r"cannot read .*x\.toml: No such file"):
        read_table(path)
    path.write_text("a = ")
    with pytest.raises(InputError, match=r"x\.toml is not valid TOML"):
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
    with pytest.raises(InputError, match="not valid UTF-8"):
        read_table(tmp_path / name)
