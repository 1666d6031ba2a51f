"""``ssd1b bulk``: shards are complete or not there, and the same after any interruption."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock
from pyarrow.parquet import read_table

from ssd1b.actions.bulk import Bulk, generate_bulk
from ssd1b.actions.loading import Loading
from ssd1b.errors import InputError
from ssd1b.images import decode_recipe
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import Recipe, read_json
from ssd1b.training.data.examples import Columns
from ssd1b.training.data.sources import open_source

SIZES = ("--steps", "1", "--size", "64", "--device", "cpu", "--dtype", "fp32", "--offline")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Eight rows, of which two cannot be used and two are equal."""
    found: list[dict[str, Any]] = [{"prompt": f"number {n}", "id": f"r{n}"} for n in range(6)]
    found[2] = {"prompt": "", "id": "r2"}
    found[4] = {"prompt": "number 4", "steps": 0, "id": "r4"}
    found += [{"prompt": "the same", "seed": 5, "id": f"r{n}"} for n in (6, 7)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Return the published files by their paths."""
    published = [*folder.glob("shards/**/*"), *folder.glob("pictures/**/*"), *folder.glob("manifest/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in published if path.is_file()}


def manifest(folder: Path) -> list[dict[str, Any]]:
    return sorted(read_table(folder / "manifest").to_pylist(), key=lambda entry: entry["row"])


def test_shards_and_manifest_describe_each_other(run, rows, tiny_model, tmp_path) -> None:
    done = run("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES, "--shard", 5)
    assert (done.code, done.out) == (1, "8 rows: 2 shards generated, 0 known, in out\n")
    *reasons, last = done.err.splitlines()
    assert sorted(reasons) == [
        "1 failed: prompt is empty: describe an image",
        "1 failed: steps is 0: it must be a whole number from 1 to 1000",
    ]
    assert last == "2 of 8 rows failed: the column error of out/manifest says why"
    entries = manifest(tmp_path / "out")
    assert [entry["id"] for entry in entries] == [f"r{n}" for n in range(8)]
    assert [entry["state"] for entry in entries] == ["done"] * 2 + ["failed", "done"] * 2 + ["done"] * 2
    assert [entry["seed"] for entry in entries] == [0, 1, None, 3, None, 5, 5, 5], (
        "a row's number, unless given"
    )
    assert entries[6]["key"] == entries[7]["key"]
    for entry in entries:
        if entry["state"] == "failed":
            assert entry["error"] and entry["file"] is None
            continue
        with (tmp_path / "out" / entry["file"]).open("rb") as shard:
            shard.seek(entry["offset"])
            picture = shard.read(entry["size"])
        assert hashlib.sha256(picture).hexdigest() == entry["sha256"]
        recipe = decode_recipe(picture)
        assert isinstance(recipe, Recipe) and recipe == read_json(entry["recipe"])
        assert recipe.settings.prompt == entry["prompt"] and recipe.settings.seed == entry["seed"]
        assert entry["passes"] and dict(entry["metrics"])["clipping"] >= 0


def test_the_trainings_read_the_shards(run, rows, tiny_model, tmp_path) -> None:
    run("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES, "--shard", 5)
    examples = open_source(tmp_path / "out/shards", Columns(), cache=tmp_path)
    assert [each.captions() for each in examples] == [
        ["number 0"], ["number 1"], ["number 3"], ["number 5"], ["the same"], ["the same"]
    ]  # fmt: skip
    run("bulk", rows, "--out", "folders", "--as", "folder", "--format", "webp", "--model", tiny_model, *SIZES)
    examples = open_source(tmp_path / "folders/pictures", Columns(), cache=tmp_path)
    assert len(examples) == 6 and examples[0].captions() == ["number 0"]
    first = manifest(tmp_path / "folders")[0]
    data = (tmp_path / "folders" / first["file"]).read_bytes()
    assert data[8:12] == b"WEBP" and decode_recipe(data) == read_json(first["recipe"])


def test_a_second_run_skips_what_is_there(run, rows, tiny_model, tmp_path, monkeypatch) -> None:
    call = ("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES, "--shard", 5)
    first = run(*call)
    before = files(tmp_path / "out")
    with monkeypatch.context() as without:
        without.setattr(Pipeline, "draw", None)
        again = run(*call)
        assert again.out == "8 rows: 0 shards generated, 2 known, in out\n"
        assert (again.code, again.err) == (1, first.err), "rows that failed before are not forgotten"
        assert run(*call, "--dry-run").out == "8 rows: 0 shards would be generated, 2 known\n"
    assert not list((tmp_path / "out/unfinished/pictures").rglob("*.png")), "they are in the shards"
    next((tmp_path / "out/manifest").iterdir()).unlink()
    assert run(*call).out == "8 rows: 1 shard generated, 1 known, in out\n"
    assert files(tmp_path / "out") == before
    assert "1 shard generated" in run(*call, "--retry").out, "the one with failed rows"
    assert files(tmp_path / "out") == before
    other = run(*call, "--guidance", 2)
    assert "2 shards generated" in other.out
    assert (
        "out also has 2 shards of other rows or settings, which stay there and in the manifest" in other.err
    )


def test_rows_that_failed_while_they_were_generated_are_not_forgotten(
    run, tiny_model, tmp_path, monkeypatch
) -> None:
    (tmp_path / "rows.txt").write_text("a cube\na cone\n")
    call = ("bulk", "rows.txt", "--out", "out", "--model", tiny_model, *SIZES)
    failures = "1 failed: out of numbers\n1 of 2 rows failed: the column error of out/manifest says why\n"
    draw = Pipeline.draw

    def failing(self, batch, *rest):
        if any(settings.prompt == "a cone" for settings in batch):
            raise ArithmeticError("out of numbers")
        return draw(self, batch, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(Pipeline, "draw", failing)
        done = run(*call)
        assert (done.code, done.err) == (1, failures)
    for dry in ((), ("--dry-run",)):
        done = run(*call, *dry)
        assert done.code == 1 and done.err.startswith("1 failed: out of numbers\n1 of 2 rows failed: ")
    done = run(*call, "--retry")
    assert (done.code, done.err) == (0, "") and "1 shard generated" in done.out
    assert (run(*call).code, run(*call).err) == (0, "")


def test_a_dry_run_checks_all_rows_and_writes_nothing(run, rows, tiny_model, tmp_path) -> None:
    done = run("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES, "--shard", 5, "--dry-run")
    assert (done.code, done.out) == (1, "8 rows: 2 shards would be generated, 0 known\n")
    assert done.err.splitlines()[2:] == ["2 of 8 rows failed: the others can be generated"]
    (tmp_path / "wrong.csv").write_text("prompt,steps\na cube,0\n")
    done = run("bulk", "wrong.csv", "--out", "out", "--model", tiny_model, "--dry-run")
    assert done.err.splitlines()[1:] == ["1 of 1 row failed: no row can be generated"]
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_continues_with_the_same_files(
    run, rows, tiny_model, tmp_path, monkeypatch
) -> None:
    call = ("bulk", rows, "--model", tiny_model, *SIZES, "--shard", 5)
    run(*call, "--out", "whole")
    draw, calls = Pipeline.draw, []

    def interrupted(self, batch, *rest):
        calls.append(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(self, batch, *rest)

    monkeypatch.setattr(Pipeline, "draw", interrupted)
    stopped = run(*call, "--out", "out")
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1].endswith("the same command continues")
    assert len(files(tmp_path / "out")) == 2, "the first shard"
    assert "1 shard generated, 1 known" in run(*call, "--out", "out").out
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_files(run, tiny_model, tmp_path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"number {n}\n" for n in range(60)))
    call = ["bulk", path, "--model", tiny_model, *SIZES, "--shard", 4]
    run(*call, "--out", "whole")
    moments = random.Random(0)
    command = [sys.executable, "-m", "ssd1b", *map(str, call), "--out", str(tmp_path / "out")]
    kills = 0
    while True:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while kills < 4 and process.poll() is None and len(files(tmp_path / "out")) < 4 * (kills + 1):
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.1))
            if kills < 4 and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
                continue
            _, complaint = process.communicate()
            assert process.returncode == 0, complaint
            break
    assert kills >= 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not [path for path in (tmp_path / "out").rglob("*.partial") if "unfinished" not in path.parts]


def test_an_object_store_gets_the_same_files(rows, tiny_model, tmp_path) -> None:
    found = []
    for out in (str(tmp_path / "out"), "memory://bucket/images"):
        what = Bulk(rows=str(rows), out=out, model=str(tiny_model), settings={"steps": 1}, shard_size=5)
        loading = Loading(device="cpu", dtype="fp32", offline=True)
        done = generate_bulk(what, tmp_path / f"work-{len(found)}", loading)
        assert (done.rows, done.shards, done.failed.total()) == (8, 2, 2)
        assert generate_bulk(what, tmp_path / f"work-{len(found)}", loading).known == 2
        found.append(files(Path(out)) if not found else _stored("bucket/images"))
    assert found[0] == found[1] and len(found[0]) == 4


def _stored(folder: str) -> dict[str, bytes]:
    store: Any = fsspec.filesystem("memory")
    return {path.removeprefix(f"/{folder}/"): store.cat_file(path) for path in store.find(folder)}


def test_one_process_at_a_time_writes_to_a_destination(run, rows, tiny_model, tmp_path) -> None:
    (tmp_path / "out/unfinished").mkdir(parents=True)
    with FileLock(tmp_path / "out/unfinished/bulk.lock"):
        done = run("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES)
    assert done.code == 2
    assert done.err == "error: another process is writing to out: wait for it, or choose another --out\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "seed is -1"),
        (["--shard", "0"], "shard is 0"),
        (["--steps", "0"], "steps is 0"),
        (["--out", "nonsense://x"], "cannot write to nonsense://x"),
        (["--model", "nowhere"], "nowhere"),
        (["--as", "zip"], "webdataset"),
        (["--part", "0/3"], "part is 0/3: it must be K/N"),
        (["--part", "4/3"], "part is 4/3"),
        (["--part", "half"], "part is 'half'"),
        (["--part", "1/1000000"], "and N below a million"),
    ],
)
def test_wrong_calls_are_one_line_and_leave_nothing(run, rows, tmp_path, arguments, message) -> None:
    done = run("bulk", rows, "--out", "out", *SIZES, *arguments)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and message in done.err
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl"]


def test_parts_together_are_the_whole(run, rows, tiny_model, tmp_path) -> None:
    common = ("--model", tiny_model, *SIZES, "--shard", 3)
    assert run("bulk", rows, "--out", "whole", *common).code == 1
    lines = []
    for part, failed in (("2/2", 1), ("1/2", 1), ("3/4", 0), ("4/4", 0)):
        done = run("bulk", rows, "--out", "parts", *common, "--part", part)
        assert done.code == failed and "other rows" not in done.err
        lines.append(done.out)
    assert lines[:2] == [
        "3 rows: 1 shard generated, 0 known, in parts\n",
        "5 rows: 2 shards generated, 0 known, in parts\n",
    ]
    assert lines[2] == "2 rows: 0 shards generated, 1 known, in parts\n", "published by part 1/2"
    assert lines[3] == "0 rows: 0 shards generated, 0 known, in parts\n", "there are only three shards"
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    done = run("bulk", rows, "--out", "parts", *common)
    assert done.out == "8 rows: 0 shards generated, 3 known, in parts\n"


def test_a_sweep_is_no_folder_for_unfinished_images(run, rows, tiny_model, tmp_path) -> None:
    run("sweep", "number 0", "--seed", 0, "--out", "cells", "--model", tiny_model, *SIZES)
    before = {path: path.read_bytes() for path in (tmp_path / "cells/pictures").rglob("*.png")}
    done = run("bulk", rows, "--out", "out", "--work", "cells", "--model", tiny_model, *SIZES)
    assert done.code == 2 and "cells contains files that ssd1b bulk did not write" in done.err
    assert before and {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("first", "second"), [("webdataset", "folder"), ("folder", "webdataset")])
def test_a_destination_has_tars_or_folders(run, rows, tiny_model, tmp_path, first, second) -> None:
    call = ("bulk", rows, "--model", tiny_model, *SIZES, "--as")
    assert "1 shard generated, 0 known" in run(*call, first, "--out", "out").out
    before = files(tmp_path / "out")
    for dry in ((), ("--dry-run",)):
        done = run(*call, second, "--out", "out", *dry)
        assert done.code == 2 and len(done.err.splitlines()) == 1
        assert f"has images of --as {first}, and its manifest describes them" in done.err
    assert files(tmp_path / "out") == before
    assert len(manifest(tmp_path / "out")) == 8, "each row once"
    assert "1 shard generated" in run(*call, second, "--out", "other").out


def test_columns_are_kept_whichever_row_has_them(run, tiny_model, tmp_path) -> None:
    rows = ['{"prompt": "a"}', '{"prompt": "b", "licence": "cc0"}', '{"prompt": ""}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    run("bulk", "rows.jsonl", "--out", "out", "--keep", "licence", "--model", tiny_model, *SIZES)
    assert [entry["kept_licence"] for entry in manifest(tmp_path / "out")] == [None, "cc0", None]


def test_a_destination_with_a_file_in_the_way_keeps_the_images(run, rows, tiny_model, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/shards").write_text("mine")
    call = ("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES)
    done = run(*call)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and "the same command continues" in done.err
    assert (tmp_path / "out/shards").read_text() == "mine"
    (tmp_path / "out/shards").unlink()
    assert "1 shard generated" in run(*call).out


def test_a_disk_that_fills_while_a_shard_is_written(run, rows, tiny_model, tmp_path, disk_of) -> None:
    disk = disk_of("512k")
    (disk / "ballast").write_bytes(bytes(500_000))
    call = ("bulk", rows, "--out", disk / "out", "--work", "work", "--model", tiny_model, *SIZES)
    done = run(*call)
    assert done.code == 2 and "no space left" in done.err.lower(), done.err
    assert len(done.err.splitlines()) == 1 and files(disk / "out") == {}
    (disk / "ballast").unlink()
    assert "1 shard generated" in run(*call).out
    assert run("bulk", rows, "--out", "whole", "--model", tiny_model, *SIZES).code == 1, "two rows fail"
    assert files(disk / "out") == files(tmp_path / "whole")


_DIE = """
import os, sys
from ssd1b import saving
move = saving._move
saving._move = lambda old, new, *rest: os._exit(9) if new.suffix == ".tar" else move(old, new, *rest)
from ssd1b.cli import main
main(sys.argv[1:])
"""


def test_what_a_killed_run_was_writing_is_overwritten(run, rows, tiny_model, tmp_path) -> None:
    call = ("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES)
    command = [sys.executable, "-c", _DIE, *map(str, call)]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 9
    assert [path.suffix for path in (tmp_path / "out/shards").iterdir()] == [".partial"]
    assert "1 shard generated" in run(*call).out
    assert [path.suffix for path in (tmp_path / "out/shards").iterdir()] == [".tar"]


def test_a_wrong_column_is_found_before_anything_is_written(run, tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,guidence\nx,3\n")
    done = run("bulk", "rows.csv", "--out", "out", *SIZES)
    assert done.code == 2 and "did you mean 'guidance'" in done.err
    done = run("bulk", "rows.csv", "--keep", "guidence", "--keep", "licence", "--out", "out", *SIZES)
    assert done.code == 2 and "rows.csv, columns to keep: unknown column 'licence'" in done.err
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_samples_of_rows_with_the_same_id_have_keys_of_their_own(run, tiny_model, tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,id\na cube,x\na cone,x\n")
    call = ("bulk", "rows.csv", "--model", tiny_model, *SIZES)
    done = run(*call, "--out", "out")
    assert done.code == 1 and "1 failed: id is 'x', as that of an earlier row" in done.err
    assert [entry["state"] for entry in manifest(tmp_path / "out")] == ["done", "failed"]
    assert run(*call, "--keep", "id", "--out", "kept").code == 0
    with tarfile.open(next((tmp_path / "kept/shards").iterdir())) as tar:
        names = tar.getnames()
    assert names == [f"{row:09d}.{suffix}" for row in range(2) for suffix in ("png", "txt", "json")]
    assert [entry["kept_id"] for entry in manifest(tmp_path / "kept")] == ["x", "x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--keep", "licence"], "unknown column 'licence'"),
        (["--out", "rows.jsonl/out"], "cannot write"),
        (["--as", "folder"], "has images of --as webdataset"),
        (["--ray-cpus", "4096"], "--ray-cpus is 4096: this machine has "),
        (["--ray-cpus", "0"], "--ray-cpus is 0"),
        (["--ray-gpus", "1.5"], "--ray-gpus is 1.5"),
        (["--ray", "head"], "--ray is 'head'"),
        (["--device", "cuda:99"], "device 'cuda:99' is not in this machine"),
        (["--ray-gpus", "0.5"], "an actor needs 0.5 GPUs, and this machine has none"),
    ],
)
def test_what_can_be_checked_is_checked_before_a_cluster_is_started(
    run, rows, tiny_model, tmp_path, monkeypatch, arguments, message
) -> None:
    monkeypatch.setattr("ssd1b.actions.cluster.connected", None)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    (tmp_path / "out/shards").mkdir(parents=True)
    (tmp_path / "out/manifest").mkdir()
    (tmp_path / "out/manifest/000000-0.parquet").touch()
    (tmp_path / "out/shards/000000-0.tar").touch()
    call = ("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES, "--ray", "local", *arguments)
    done = run(*call)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and message in done.err, done.err
    assert not (tmp_path / "out/unfinished").exists()


def test_a_lock_is_found_before_a_cluster_is_started(run, rows, tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ssd1b.actions.cluster.connected", None)
    (tmp_path / "out/unfinished").mkdir(parents=True)
    with FileLock(tmp_path / "out/unfinished/bulk.lock"):
        done = run("bulk", rows, "--out", "out", "--model", tiny_model, *SIZES, "--ray", "local")
    assert done.code == 2 and "another process is writing to out" in done.err


def test_a_destination_that_refuses_keeps_what_was_generated(rows, tiny_model, tmp_path, monkeypatch) -> None:
    memory: Any = fsspec.filesystem("memory")
    what = Bulk(rows=str(rows), out="memory://full/x", model=str(tiny_model), settings={"steps": 1})
    loading = Loading(device="cpu", dtype="fp32", offline=True)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Forbidden")

    monkeypatch.setattr(type(memory), "put_file", refuse)
    with pytest.raises(
        InputError, match=r"cannot use full/x/shards/.*: Forbidden|cannot use /full/x.*Forbidden"
    ):
        generate_bulk(what, tmp_path / "work", loading)
    monkeypatch.undo()
    monkeypatch.setattr(Pipeline, "draw", None)
    assert generate_bulk(what, tmp_path / "work", loading).shards == 1
