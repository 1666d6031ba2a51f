"""Rows: every format gives the same, and a row that cannot be used stops no other."""

import gzip
import io
import json
import os
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from pyarrow.parquet import write_table

from ssd1b.bulk.rows import MAX_LINE, Row, count_rows, read_rows
from ssd1b.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"prompt": "a red cube", "id": "a", "guidance": 5.5, "steps": 3, "size": "64x128", "licence": "cc0"},
    {"prompt": 'a "blue" cone,\nsecond line', "negative_prompt": "blurry", "sampler": "DPM++ 2M Karras"},
    {"prompt": "日本", "seed": 7, "guidance_interval": [0.2, 0.8]},
]


def jsonl(folder: Path, lines: bytes, name: str = "rows.jsonl") -> str:
    (folder / name).write_bytes(lines)
    return str(folder / name)


def csv_text(delimiter: str) -> str:
    names = ["prompt", "id", "guidance", "steps", "size", "licence", "negative_prompt", "sampler", "seed",
             "guidance_interval"]  # fmt: skip
    lines = [delimiter.join(names)]
    for row in ROWS:
        cells = [row.get(name, "") for name in names]
        texts = [", ".join(map(str, each)) if isinstance(each, list) else str(each) for each in cells]
        lines.append(delimiter.join('"{}"'.format(text.replace('"', '""')) for text in texts))
    return "\r\n".join(lines) + "\r\n"


def write(folder: Path, form: str) -> str:
    path = folder / f"rows{form}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    match form:
        case ".jsonl":
            path.write_bytes(lines)
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        case ".csv":
            path.write_text(csv_text(","), "utf-8-sig", newline="")
        case ".tsv":
            path.write_text(csv_text("\t"), newline="")
        case _:
            columns = list(dict.fromkeys(name for row in ROWS for name in row))
            table = pyarrow.table({name: [row.get(name) for row in ROWS] for name in columns})
            write_table(table, path)
    return str(path)


@pytest.mark.parametrize("form", [".jsonl", ".jsonl.gz", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    found = list(read_rows(write(tmp_path, form), keep=["licence"]))
    assert [row.error for row in found] == [None] * 3
    assert [row.prompt for row in found] == [row["prompt"] for row in ROWS]
    assert [(row.number, row.id) for row in found] == [(0, "a"), (1, "1"), (2, "2")]
    assert found[0].settings == {"guidance_scale": 5.5, "steps": 3, "width": 64, "height": 128}
    assert found[1].settings == {"negative_prompt": "blurry", "sampler": "dpmpp_2m", "schedule": "karras"}
    assert found[2].settings == {"seed": 7, "guidance_interval": (0.2, 0.8)}
    assert found[0].kept == {"licence": "cc0"}


def test_prompts_alone_from_a_text_file_and_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path, "\ufeffa red cube\n\na blue cone".encode(), "prompts.txt")
    assert [row.prompt for row in read_rows(path)] == ["a red cube", "a blue cone"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"prompt": "a torus"}\n')))
    assert [row.prompt for row in read_rows("-")] == ["a torus"]


BAD = {
    '{"prompt": ""}': "prompt is empty",
    '{"steps": 3}': "prompt is empty",
    '{"prompt": 5}': "prompt is 5: it must be text",
    '{"prompt": "\\ud800"}': "invalid character",
    '{"prompt": "x", "seed": -1}': "seed is -1",
    '{"prompt": "x", "steps": 0}': "steps is 0",
    '{"prompt": "x", "steps": "three"}': "steps: 'three'",
    '{"prompt": "x", "crop_top_left": "1,b"}': "'b'",
    '{"prompt": "x", "steps": 3, "steps": 4}': "the key 'steps' is there twice",
    '{"prompt": "x", "guidance": 3, "cfg_scale": 4}': "'guidance' and 'cfg_scale' both set guidance_scale",
    '{"prompt": "x", "text": "y"}': "'prompt' and 'text' both set prompt",
    '{"prompt": "x", "steps": {"a": 1}}': "steps",
    '{"prompt": "x", "guidance": NaN}': "guidance_scale",
    '{"prompt": "x", "sampler": "nonsense"}': "nonsense",
    '{"prompt": "x", "size": "big"}': "size is 'big'",
    '{"prompt": "x", "guidence": 3}': "did you mean 'guidance'",
    "[1, 2]": "not a JSON object",
    "not json": "not JSON",
    "[" * 100_000: "nested too deeply",
    '{"prompt": "' + "x" * MAX_LINE + '"}': "longer than",
    '{"prompt": "' + "9" * 50_000 + '", "steps": ' + "9" * 5000 + "}": "not JSON: a number has",
}  # fmt: skip


def test_a_row_that_cannot_be_used_says_why_and_stops_no_other(tmp_path: Path) -> None:
    lines = ['{"prompt": "first"}', *BAD, '{"prompt": "last"}']
    found = list(read_rows(jsonl(tmp_path, "\n".join(lines).encode() + b'\n{"prompt": "\xff"}\n')))
    assert [row.prompt for row in found if row.error is None] == ["first", "last"]
    assert found[-1].error == "the line is not UTF-8: save the file as UTF-8"
    for row, reason in zip(found[1:-2], BAD.values(), strict=True):
        assert row.error is not None and reason in row.error and len(row.error) < 600  # it lists the columns
        row.prompt.encode(), row.id.encode()  # they can be written


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            b'{"prompt": "x", "guidence": 3}\n',
            r"^\S*rows\.jsonl: .*did you mean 'guidance'.* --keep",
        ),
        ("rows.csv", b"prompt,guidence\nx,3\n", r"^\S*rows\.csv: .*did you mean 'guidance'"),
        ("rows.csv", b",prompt\n0,x\n", r"rows\.csv: column 1 has no name; .* index=False"),
        ("rows.jsonl", b"", "has no rows"),
        ("rows.csv", b"prompt\n", "has no rows"),
        ("rows.csv", b"prompt,steps,steps\nx,3,4\n", "has two columns 'steps'"),
        ("rows.csv", b"prompt\nx\n\xff\n", r"rows\.csv, line 3: not UTF-8: save the file as UTF-8"),
        ("rows.csv", "prompt\na cube\n".encode("utf-16"), r"rows\.csv is UTF-16, UTF-32 or no text: save it"),
        ("rows.tsv", "prompt\na cube\n".encode("utf-16-le"), r"rows\.tsv is UTF-16"),
        ("rows.jsonl", '{"prompt": "x"}\n'.encode("utf-16"), r"rows\.jsonl is UTF-16"),
        ("rows.txt", "a cube\n".encode("utf-32"), r"rows\.txt is UTF-16"),
        ("rows.csv", b"prompt;steps\nx;3\n", "line 1: .* separated by semicolons, .* save it with commas$"),
        ("rows.csv", b"prompt\tsteps\nx\t3\n", r"line 1: .* separated by tabs, .*: rename it to \.tsv$"),
        ("rows.tsv", b"prompt,steps\nx,3\n", r"line 1: .* separated by commas, .*: rename it to \.csv$"),
        (
            "rows.csv",
            b'prompt\na\n"b\nc\n',
            r"rows\.csv, line 3: a cell begins with a quote that is not closed",
        ),
        ("rows.csv", b'prompt\n"b\nc\n"d"\n', r"rows\.csv, line 2: a cell begins with a quote"),
        ("rows.csv", b'prompt\n"b\n' + 9 * (b"x" * 2**17 + b"\n"), r"line 2: a cell begins with a quote"),
        ("rows.csv", b'"prompt" of,steps\nx,3\n', r"rows\.csv, line 1: misplaced quotes"),
        ("rows.csv", b"steps,id\n3,a\n", r"rows\.csv: there is no column 'prompt'"),
        ("rows.jsonl", b'[{"prompt": "x"}]\n', r"rows\.jsonl is JSON, not JSON lines .* converts an array"),
        ("rows.jsonl", b'\n{\n "prompt": "x"\n}\n', r"rows\.jsonl is JSON, not JSON lines"),
        ("rows.csv", b"prompt,guidence\nx,3,4\n", "did you mean 'guidance'"),
        ("rows.csv", b"prompt\n" + b"x" * (MAX_LINE + 1), "line 2: longer than"),
        ("rows.parquet", b"PAR1", r"rows\.parquet is not a Parquet file"),
        ("rows.jsonl.gz", b"no gzip", "cannot read"),
        ("rows.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 9999)[:-20], "cannot read"),
        ("rows.xlsx", b"", "the suffix must name a format: .jsonl"),
        ("rows", b"", "the suffix must name a format: .jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_rows(jsonl(tmp_path, content, name)))


class ObjectStore(MemoryFileSystem):
    """Opens files as s3fs, gcsfs and others do."""

    protocol = "objects"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return ObjectFile(self, path, mode) if mode == "rb" else super()._open(path, mode, **options)


class ObjectFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path)[start:end]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".txt", ".parquet"])
def test_rows_in_an_object_store(suffix: str) -> None:
    register_implementation("objects", ObjectStore, clobber=True)
    lines = {".csv": b"prompt\na cube\na cone\n", ".txt": b"a cube\na cone\n"}
    data = lines.get(suffix, b'{"prompt": "a cube"}\n{"prompt": "a cone"}\n')
    if suffix == ".parquet":
        file = io.BytesIO()
        write_table(pyarrow.table({"prompt": ["a cube", "a cone"]}), file)
        data = file.getvalue()
    path = f"objects://bucket/rows{suffix}"
    ObjectStore().pipe_file(path, gzip.compress(data) if ".gz" in suffix else data)
    found = [row.prompt for row in read_rows(path)]
    assert found == ["a cube", "a cone"]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_numbers_as_pandas_writes_a_column_with_an_empty_cell(tmp_path: Path, form: str) -> None:
    """Whole numbers become 4.0; an empty cell is NaN in Parquet."""
    path = tmp_path / f"rows.{form}"
    if form == "csv":
        path.write_text("prompt,steps,guidance\na,4.0,\nb,,5.5\nc,2.5,5.0\n")
    else:
        nan = float("nan")
        table = {"prompt": ["a", "b", "c"], "steps": [4.0, nan, 2.5], "guidance": [nan, 5.5, 5.0]}
        write_table(pyarrow.table(table), path)
    first, second, third = read_rows(str(path))
    assert first.settings == {"steps": 4} and isinstance(first.settings["steps"], int)
    assert second.settings == {"guidance_scale": 5.5}
    assert third.error is not None and "2.5" in third.error


def test_pipes_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe.jsonl", "folder.jsonl", "missing.jsonl"):
        with pytest.raises(InputError, match="cannot read"):
            list(read_rows(str(tmp_path / name)))
    with pytest.raises(InputError, match=r"cannot read memory://nowhere/rows\.jsonl"):
        list(read_rows("memory://nowhere/rows.jsonl"))


def test_a_csv_row_with_too_many_cells(tmp_path: Path) -> None:
    found = list(read_rows(jsonl(tmp_path, b"prompt,steps\na,2\nb,2,3\n", "rows.csv")))
    assert [row.error is None for row in found] == [True, False]


def test_a_csv_row_with_misplaced_quotes_stops_no_other(tmp_path: Path) -> None:
    path = jsonl(tmp_path, b'prompt\na 5" cube\n"a "red" cube"\n"a ""blue"" cube"\nx\n"last', "rows.csv")
    found = list(read_rows(path))
    assert [row.prompt for row in found if row.error is None] == ['a 5" cube', 'a "blue" cube', "x"]
    assert [row.number for row in found] == list(range(5))
    for row, line in ((found[1], 3), (found[4], 6)):
        assert row.error is not None
        assert row.error.startswith(f"line {line}: ") and row.error.endswith(
            "write those inside a cell twice"
        )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", b"prompt,licence\nx,cc0\n"),
        ("rows.jsonl", b'{"prompt": "x"}\nbroken\n{"prompt": "y", "licence": "cc0"}\n'),
        ("rows.parquet", b""),
    ],
)
def test_a_column_to_keep_that_no_row_has_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = jsonl(tmp_path, content, name)
    if not content:
        write_table(pyarrow.table({"prompt": ["x"], "licence": ["cc0"]}), path)
    assert len(list(read_rows(path, keep=["licence"]))) == 1 + (name == "rows.jsonl") * 2
    with pytest.raises(InputError, match=rf"{name}, columns to keep: .*'licnce': did you mean 'licence'\?"):
        next(iter(read_rows(path, keep=["licence", "licnce"])))


def test_standard_input_keeps_columns_of_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b'{"prompt": "a torus"}\n{"prompt": "a cube", "licence": "cc0"}\n'
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    assert [row.kept for row in read_rows("-", keep=["licence"])] == [{}, {"licence": "cc0"}]


def test_an_id_that_is_the_number_of_an_earlier_row_without_one_fails(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, *({"prompt": "b", "id": each} for each in ("0", 7, "00"))]
    found = list(read_rows(jsonl(tmp_path, b"\n".join(json.dumps(row).encode() for row in rows))))
    assert [row.error is None for row in found] == [True, False, True, True]


def test_several_numbers_are_a_list_or_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "timesteps": [999, 749], "guidance_interval": [0.1, 0.9]},
        {"prompt": "b", "timesteps": "999,749"},
        {"prompt": "c", "timesteps": [999, "x"]},
    ]
    first, second, wrong = read_rows(jsonl(tmp_path, b"\n".join(json.dumps(row).encode() for row in rows)))
    assert first.settings == {"timesteps": "999,749", "guidance_interval": (0.1, 0.9)} and first.error is None
    assert second.settings == {"timesteps": "999,749"}
    assert (wrong.error or "").startswith("timesteps is ")
    path = jsonl(tmp_path, b'prompt,timesteps,guidance_interval\na,"999,749","0.1,0.9"\n', "rows.csv")
    assert [row.settings for row in read_rows(path)] == [first.settings]


def test_ids_are_text_of_a_line_or_whole_numbers(tmp_path: Path) -> None:
    ids = ["sku-1", 30, 40.0, "", None, "x" * 1000]
    wrong = [[1], {"a": 1}, True, 2.5, "a\0b", "a\nb", "x" * 1001]
    rows = [{"prompt": "a", "id": each} for each in (*ids, *wrong)]
    found = list(read_rows(jsonl(tmp_path, b"\n".join(json.dumps(row).encode() for row in rows))))
    assert [row.id for row in found[: len(ids)]] == ["sku-1", "30", "40", "3", "4", "x" * 1000]
    assert [row.error is None for row in found] == [True] * len(ids) + [False] * len(wrong)
    assert all((row.error or "").startswith("id is ") for row in found if row.error)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_prompts_that_are_only_copied_are_refused(tmp_path: Path, name: str) -> None:
    content = {"rows.jsonl": b'{"prompt": "x", "steps": 3}\n', "rows.csv": b"prompt,steps\nx,3\n"}[name]
    path = jsonl(tmp_path, content, name)
    with pytest.raises(InputError, match="--keep prompt takes the prompts away; the manifest has them"):
        list(read_rows(path, keep=["prompt"]))
    (row,) = read_rows(
        jsonl(tmp_path, content.replace(b"steps", b"text").replace(b"3", b'"y"'), name), keep=["prompt"]
    )
    assert row.kept == {"prompt": "x"} and row.prompt.strip('"') == "y"


def test_a_first_row_without_a_prompt_fails_alone(tmp_path: Path) -> None:
    path = jsonl(tmp_path, b'{"steps": 3, "licence": "cc0"}\n{"prompt": "x", "licence": "cc0"}\n')
    for keep in (["licence"], ["licence", "steps"]):
        assert [row.error is None for row in read_rows(path, keep=keep)] == [False, True]


def test_values_that_json_lacks_are_text_or_numbers(tmp_path: Path) -> None:
    day = date(2026, 1, 2)
    columns = {
        "prompt": [b"a cat", b"a dog"],
        "seed": [Decimal("5"), Decimal("5.5")],
        "guidance": [Decimal("2.5")] * 2,
        "steps": [None, None],
        "when": [day, day],
        "of": [[day], None],
    }
    write_table(pyarrow.Table.from_pydict(columns), tmp_path / "rows.parquet")
    first, second = read_rows(str(tmp_path / "rows.parquet"), keep=["when", "of"])
    assert first.error is None and first.prompt == "a cat"
    assert first.settings == {"seed": 5, "guidance_scale": 2.5}
    assert first.kept["when"] == "2026-01-02" and "2026-01-02" in first.kept["of"]
    assert second.error is not None and second.error.startswith("seed is 5.5")
    write_table(pyarrow.Table.from_pydict({"prompt": ["x"], "steps": [day]}), tmp_path / "days.parquet")
    (row,) = read_rows(str(tmp_path / "days.parquet"))
    assert row.error is not None and row.error.startswith("steps: '2026-01-02' is not a whole")


def test_the_second_usable_row_with_an_id_fails(tmp_path: Path) -> None:
    path = jsonl(tmp_path, b"prompt,id,steps\na,x,0\nb,x,1\nc,x,1\nd,,1\ne,3,1\n", "rows.csv")
    found = list(read_rows(path))
    assert [row.error is None for row in found] == [False, True, False, True, False]
    assert found[2].error is not None and found[2].error.startswith("id is 'x', as that of an earlier row")
    assert [row.id for row in found] == ["x", "x", "x", "3", "3"], "a number is the name of row 3"
    kept = list(read_rows(path, keep=["id"]))
    assert [row.error is None for row in kept] == [False] + 4 * [True], "as a column it is no name"


def test_rows_are_a_stream_and_counted_where_that_is_cheap(tmp_path: Path) -> None:
    path = jsonl(tmp_path, b'{"prompt": "x"}\n' * 1000)
    first: Row = next(iter(read_rows(path)))
    assert first.prompt == "x"
    assert count_rows(path) == 1000
    assert count_rows(write(tmp_path, ".parquet")) == 3
    assert count_rows(write(tmp_path, ".csv")) is None and count_rows("-") is None
