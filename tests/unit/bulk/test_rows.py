"""Rows: every format gives the same, and a row that cannot be used stops no other."""

import gzip
import io
import json
import os
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
    assert found[-1].error == "the line is not UTF-8"
    for row, reason in zip(found[1:-2], BAD.values(), strict=True):
        assert row.error is not None and reason in row.error and len(row.error) < 600  # it lists the columns
        row.prompt.encode(), row.id.encode()  # they can be written


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"prompt": "x", "guidence": 3}\n', "did you mean 'guidance'.* --keep"),
        ("rows.csv", b"prompt,guidence\nx,3\n", "did you mean 'guidance'"),
        ("rows.jsonl", b"", "has no rows"),
        ("rows.csv", b"prompt\n", "has no rows"),
        ("rows.csv", b"prompt,steps,steps\nx,3,4\n", "has two columns 'steps'"),
        ("rows.csv", b"prompt\nx\n\xff\n", "line 3"),
        ("rows.csv", b"prompt\n" + b"x" * (MAX_LINE + 1), "line 2: longer than"),
        ("rows.parquet", b"PAR1", "not a Parquet file"),
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


def test_rows_are_a_stream_and_counted_where_that_is_cheap(tmp_path: Path) -> None:
    path = jsonl(tmp_path, b'{"prompt": "x"}\n' * 1000)
    first: Row = next(iter(read_rows(path)))
    assert first.prompt == "x"
    assert count_rows(path) == 1000
    assert count_rows(write(tmp_path, ".parquet")) == 3
    assert count_rows(write(tmp_path, ".csv")) is None and count_rows("-") is None
