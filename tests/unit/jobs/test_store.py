"""A store tells what is there: pictures that are gone or changed, damage, other versions, full disks."""

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab_cells import Fake, inline, run, sweep, wanted
from rounds import rounds
from ssd1b.errors import InputError
from ssd1b.jobs import store as stores
from ssd1b.jobs.driver import draw_jobs, plan
from ssd1b.jobs.executor import Inline, JobResult
from ssd1b.jobs.job import Job
from ssd1b.jobs.schema import FILE, SCHEMA
from ssd1b.jobs.store import CHANGED, DONE, Outcome, Store, pixels_digest
from ssd1b.lab.results import PASSES, load_results
from timing import at_most

SWEEP = ("guidance=2,5", "seed=1-4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with eight cells."""
    with closing(Store(tmp_path / "cells")) as opened:
        run(opened, sweep(*SWEEP), Real())
    return tmp_path / "cells"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with closing(Store(folder)) as opened:
        yield opened


class Real(Fake):
    """As ``Fake``, with the digest that pictures have."""

    def one(self, settings):
        outcome, file = super().one(settings)
        if file is not None:
            self._path = getattr(self, "_path", None) or Path(os.environ.get("TMPDIR", "/tmp"))
            digest = stores.hashlib.sha256(_image(file).tobytes()).hexdigest()
            outcome = Outcome(
                state=outcome.state, digest=digest, passes=outcome.passes, metrics=outcome.metrics,
                thumbnail=outcome.thumbnail,
            )  # fmt: skip
        return JobResult(outcome, file)


def _image(file: bytes) -> Image.Image:
    from io import BytesIO

    return Image.open(BytesIO(file))


def lost(store: Store, keys: list[str]) -> list[str]:
    return [key for key, outcome in store.read(keys) if outcome is None]


def first() -> Job:
    return wanted(sweep(*SWEEP))[0]


def edit(path: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(path)


def same_size_and_time(path: Path) -> None:
    about, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "edited": edit,
    "something else": lambda path: path.write_text("a note"),
    "a folder": lambda path: (path.unlink(), path.mkdir(), (path / "mine").touch()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a named pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_gone_or_changed_is_drawn_again_and_no_figure_of_it_is_reported(store, damage) -> None:
    path = store.picture(first().key)
    before = Image.open(path).tobytes()
    DAMAGES[damage](path)
    keys = [cell.key for cell in wanted(sweep(*SWEEP))]
    assert lost(store, keys) == [first().key] and len(store.outcomes(keys)) == 7
    results = load_results(store)
    assert (results.missing, results.lost, int(results.drawn.sum())) == (1, 1, 7)
    assert np.isnan(results.metrics["red"][0, 0, 0])
    again = Real()
    run(store, sweep(*SWEEP), again)
    assert again.drawn == 1
    assert Image.open(path).tobytes() == before and lost(store, keys) == []
    kept = [*(store.folder / CHANGED).iterdir()] if (store.folder / CHANGED).exists() else []
    assert len(kept) == (damage not in ("deleted",)), "what somebody made of a picture is not destroyed"


def test_pictures_that_were_copied_are_looked_at_once_and_stay_known(store, monkeypatch) -> None:
    keys = [cell.key for cell in wanted(sweep(*SWEEP))]
    for key in keys:
        os.utime(store.picture(key))
    read = []
    monkeypatch.setattr(stores, "pixels_digest", lambda path: (read.append(path), pixels_digest(path))[1])
    assert len(store.outcomes(keys)) == len(store.outcomes(keys)) == len(read) == 8


def test_verifying_finds_what_size_and_time_do_not_show(store) -> None:
    keys = [cell.key for cell in wanted(sweep(*SWEEP))]
    same_size_and_time(store.picture(keys[0]))
    assert load_results(store).lost == 0
    assert load_results(store, verify=True).lost == 1
    assert lost(store, keys) == keys[:1], "and it is not forgotten"


def change(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / FILE)) as database:
        database.execute(statement, values)
        database.commit()


ROWS = {
    "half of the JSON": ("metrics", '{"red": 1.'),
    "other JSON": ("metrics", "[1, 2]"),
    "texts for figures": ("metrics", '{"red": "much"}'),
    "no figures": ("metrics", '{"red": NaN, "blue": 1e999}'),
    "deep JSON": ("metrics", "[" * 100_000),
    "another figure": ("metrics", '{"red": 2.0}'),
    "bytes": ("metrics", b"\xff\xfe"),
    "another state": ("state", "almost"),
    "no digest": ("digest", b"\0\1"),
    "another digest": ("digest", "0" * 64),
    "passes": ("passes", "many"),
    "a thumbnail": ("thumbnail", b"\0\1\2"),
    "a text for a thumbnail": ("thumbnail", "small"),
    "an error": ("error", 5),
    "an empty seal": ("seal", b""),
    "no seal": ("seal", None),
}


def make_older(folder: Path, version: int = 1) -> None:
    """Give a store the tables of an older version."""
    with closing(sqlite3.connect(folder / FILE)) as database:
        for table, column in (("cells", "size"), ("cells", "time"), ("cells", "seal"), ("sweeps", "seal")):
            database.execute(f"alter table {table} drop column {column}")
        if version == 0:
            database.execute("alter table cells rename column passes to seconds")
        database.execute(f"pragma user_version = {version}")
        database.commit()


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("row", ROWS)
def test_a_damaged_row_is_drawn_again(folder: Path, row: str, sealed: bool) -> None:
    column, value = ROWS[row]
    if not sealed and column == "seal":
        pytest.skip("older versions have no seals")
    change(folder, f"update cells set {column} = ? where key = ?", value, first().key)
    if not sealed:
        make_older(folder)
    with closing(Store(folder)) as opened:
        found = load_results(opened)
        if sealed:
            assert found.lost == 1
        again = Real()
        run(opened, sweep(*SWEEP), again)
        assert again.drawn == found.lost
        assert load_results(opened).lost == 0


def without(name: str) -> Callable[[dict], object]:
    return lambda told: told.pop(name)


def setting(told: dict) -> None:
    told["axes"][0]["values"][0]["settings"] = {"guidence": 3}


DEFINITIONS: dict[str, Callable[[dict], object]] = {
    **{f"no {name}": without(name) for name in ("prompts", "axes", "model", "preset", "settings")},
    "an unknown setting": setting,
    "an unknown axis": lambda told: told["axes"][0].update(name="colour"),
    "an unknown part": lambda told: told["axes"][0]["values"][0].update(weight=3),
    "fewer values": lambda told: told["axes"][0]["values"].pop(),
    "more values": lambda told: told["axes"][1]["values"].append(told["axes"][1]["values"][0]),
    "no values": lambda told: told["axes"][0].update(values=[]),
    "a number for a model": lambda told: told.update(model=3),
    "a text for axes": lambda told: told.update(axes="guidance"),
    "a label that is none": lambda told: told["axes"][0]["values"][0].update(label=["a"]),
    "steps without steps": lambda told: told["axes"][0].update(name="steps"),
    "billions of cells": lambda told: told["axes"].extend({**told["axes"][0], "name": n} for n in "abcdefgh"),
}


@pytest.mark.parametrize("what", DEFINITIONS)
def test_a_sweep_whose_definition_cannot_be_read_is_one_line(folder: Path, what: str) -> None:
    with closing(sqlite3.connect(folder / FILE)) as database:
        ((name, text),) = database.execute("select id, definition from sweeps")
        told = json.loads(text)
        DEFINITIONS[what](told)
        database.execute("update sweeps set definition = ?, seal = null", (json.dumps(told),))
        database.commit()
    with closing(Store(folder)) as opened:
        with pytest.raises(InputError, match=f"sweep '{name}' in .* is damaged, or from another version"):
            load_results(opened)
        run(opened, sweep(*SWEEP), Real())
        assert load_results(opened).drawn.all()


@pytest.mark.parametrize(
    "statement",
    [
        "update sweeps set definition = replace(definition, '5', '6')",
        "update sweeps set definition = 'x'",
        "update members set places = '[0, 0, 9]' where position = 1",
        "update members set places = 'x' where position = 1",
        "update members set places = '[0, 0, -1]', key = 'a' where position = 1",
        "update members set key = '../../../secret' where position = 1",
        "delete from members where position = 7",
        "insert into members select sweep, 99, 'k', '[0, 0, 0]' from members limit 1",
    ],
)
@pytest.mark.parametrize("sealed", [True, False])
def test_damaged_members_are_one_line_and_are_written_down_again(folder: Path, statement, sealed) -> None:
    change(folder, statement)
    if not sealed:
        make_older(folder)
    with closing(Store(folder)) as opened:
        with suppress(InputError):
            found = load_results(opened)
            assert not sealed and found.drawn.sum() <= 8
        run(opened, sweep(*SWEEP), Real())
        assert load_results(opened).drawn.all()


def test_a_key_never_leads_out_of_the_folder(store) -> None:
    for key in ("../../secret", "/etc/passwd", "a/b", "..", "", "a\0b"):
        with pytest.raises(InputError, match="contains the key"):
            store.picture(key)


def test_a_damaged_claim_does_not_lead_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.lock").touch()
    change(folder, "insert into claims values ('k', '../../mine')")
    with closing(Store(folder)) as opened:
        assert opened.claim(["k"]) == ["k"]
    assert (tmp_path / "mine.lock").exists()


@pytest.mark.parametrize("version", [0, 1])
def test_stores_of_older_versions_open_and_are_brought_up_to_date(folder: Path, version: int) -> None:
    make_older(folder, version)
    for _ in range(2):
        with closing(Store(folder)) as opened:
            results = load_results(opened)
            assert results.drawn.all() and (PASSES in results.known_metrics) == (version == 1)
            assert version == 1 or not results.front("red").any()
            assert opened.outcomes([first().key])[first().key].metrics == {"red": 1.0}
    (folder / "pictures" / first().key[:2] / f"{first().key}.png").unlink()
    with closing(Store(folder)) as opened:
        assert load_results(opened, verify=True).lost == 1


def test_a_store_of_a_newer_version_is_left_alone(folder: Path) -> None:
    change(folder, f"pragma user_version = {SCHEMA + 1}")
    before = (folder / FILE).read_bytes()
    with pytest.raises(InputError, match=f"newer ssd1b .*version {SCHEMA + 1}.*update ssd1b"):
        Store(folder)
    assert (folder / FILE).read_bytes() == before and not [*(folder / "workers").iterdir()]


OTHERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("something else entirely, and long enough to be looked at" * 10),
    "somebody's database": lambda path: _database(path, "create table cats (name text)"),
    "a table of that name": lambda path: _database(path, "create table cells (prisoner text)"),
    "ours and another": lambda path: _database(path, "create table files (a)", "create table b (c)"),
    "a folder": Path.mkdir,
    "a named pipe": os.mkfifo,
    "a negative version": lambda path: _database(path, "create table cells (a)", "pragma user_version = -7"),
}


def _database(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path, what: str) -> None:
    OTHERS[what](tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes() if (tmp_path / FILE).is_file() else None
    with pytest.raises(InputError, match=r"not a store of cells|keeps its tables in a file"):
        Store(tmp_path)
    assert before is None or (tmp_path / FILE).read_bytes() == before


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match="cannot"):
            Store(folder)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "workers").touch()
    with closing(Store(tmp_path / "cells")) as opened, pytest.raises(InputError, match="cannot write"):
        opened.claim(["k"])


def test_nothing_is_made_until_a_cell_is_claimed(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "cells")) as opened:
        (tmp_path / "model").write_text("weights")
        opened.file_digest(tmp_path / "model")
        opened.record("z", {"a": 1}, [("k", (0,))])
        opened.record("a", {"a": 2}, [("k", (0,))])
        assert [*opened.read(["k"])] == [] and opened.free(["k"]) == ["k"]
        assert [*opened.sweeps()] == ["z", "a"]
        assert [*tmp_path.iterdir()] == [tmp_path / "model"]
        assert opened.claim(["k"]) == ["k"]
        assert [*opened.sweeps()] == ["z", "a"] and [m.key for m in opened.members("a")] == ["k"]
    assert (tmp_path / "cells" / FILE).exists()


def test_a_model_that_cannot_be_loaded_leaves_no_folder(tmp_path: Path) -> None:
    def prepare(name: str):
        raise InputError("no such weights")

    with closing(Store(tmp_path / "cells")) as opened, pytest.raises(InputError, match="no such weights"):
        draw_jobs(plan(wanted(sweep(*SWEEP)), opened), opened, Inline(prepare))
    assert not (tmp_path / "cells").exists()


def test_a_full_database_keeps_what_was_drawn_and_goes_on_when_there_is_space(folder: Path) -> None:
    more = sweep("guidance=2,5", "seed=1-400")
    with closing(Store(folder)) as opened:
        pages = opened._database.execute("pragma page_count").fetchone()[0]
        with pytest.raises(InputError, match="no space left on the disk; finished cells are kept"):
            opened._database.execute(f"pragma max_page_count = {pages + 40}")
            run(opened, more, Real())
    with closing(Store(folder)) as opened:
        before = len(opened.outcomes(cell.key for cell in wanted(more)))
        assert before >= 8
        again = Real()
        run(opened, more, again)
        assert again.drawn == 800 - before
        assert load_results(opened, verify=True).drawn.all()


@pytest.mark.parametrize("when", ["begin", "insert or replace into cells", "delete from claims", "commit"])
def test_wherever_the_disk_refuses_it_is_one_line_and_the_next_run_goes_on(folder: Path, when: str) -> None:
    class Refusing(sqlite3.Connection):
        armed = False

        def execute(self, statement, *values):
            self.refuse(statement)
            return super().execute(statement, *values)

        def executemany(self, statement, *values):
            self.refuse(statement)
            return super().executemany(statement, *values)

        def refuse(self, statement: str) -> None:
            if self.armed and statement.startswith(when):
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error

    more = sweep("guidance=2,5,9", "seed=1-4")
    fake = Real()
    with closing(Store(folder)) as opened:
        opened._database.close()
        refusing = sqlite3.connect(folder / FILE, isolation_level=None, factory=Refusing)
        opened._database = refusing

        def render(batch, watch):
            refusing.armed = True
            return fake(batch)

        with pytest.raises(InputError, match="no space left"):
            draw_jobs(plan(wanted(more), opened), opened, inline(render))
    again = Real()
    with closing(Store(folder)) as opened:
        run(opened, more, again)
        assert again.drawn == fake.drawn == 4
        assert load_results(opened, verify=True).drawn.all()
    assert not [*(folder / "workers").iterdir()]


def test_a_disk_that_fills_and_is_emptied(disk_of: Callable[[str], Path]) -> None:
    small_disk = disk_of("512k")
    more = sweep("guidance=2-40", "seed=1-20")
    (small_disk / "ballast").write_bytes(bytes(200_000))
    for _ in range(50):
        with closing(Store(small_disk / "cells")) as opened:
            try:
                run(opened, more, Real())
                break
            except InputError as error:
                assert "no space left" in str(error) or "cannot use" in str(error), error
        keys = [cell.key for cell in wanted(more)]
        if not (small_disk / "ballast").exists():
            break  # so many pictures do not fit at all
        with closing(Store(small_disk / "cells")) as opened:
            known = len(opened.outcomes(keys))
        (small_disk / "ballast").unlink()
    assert known > 0
    with closing(Store(small_disk / "cells")) as opened:
        assert len(opened.outcomes(keys)) >= known, "nothing that was drawn is lost"
        assert not lost(opened, keys)


def test_a_database_with_flipped_bits_is_refused_or_used_and_never_told_wrong(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE)) as database:
        database.execute("pragma wal_checkpoint(truncate)")
    whole = (folder / FILE).read_bytes()
    truth = {}
    with closing(Store(folder)) as opened:
        truth = opened.outcomes(cell.key for cell in wanted(sweep(*SWEEP)))
    rng = random.Random(0)
    refused, tries = 0, rounds(60, 300)
    for _ in range(tries):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 30))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for extra in folder.glob(f"{FILE}-*"):
            extra.unlink()
        (folder / FILE).write_bytes(content)
        try:
            with closing(Store(folder)) as opened:
                found = opened.outcomes(truth)
                assert all(truth[key] == each for key, each in found.items())
                with suppress(InputError):
                    load_results(opened, verify=True)
                run(opened, sweep(*SWEEP), Real())
                assert opened.outcomes(truth) == truth
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 0 < refused < tries


def test_a_digest_is_remembered_until_the_file_could_be_another(store, tmp_path, monkeypatch) -> None:
    path, read = tmp_path / "weights", []
    digest = stores.hashlib.file_digest
    monkeypatch.setattr(stores.hashlib, "file_digest", lambda *a: (read.append(a), digest(*a))[1])
    path.write_bytes(b"one")
    old = store.file_digest(path)
    assert store.file_digest(path) == old and len(read) == 2, "too fresh to tell a change by its times"
    monkeypatch.setattr(stores, "_MIN_AGE", -(10**12))
    assert store.file_digest(path) == store.file_digest(path) == old and len(read) == 3

    about = path.stat()
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    os.replace(other, path)  # of the same size and time
    new = store.file_digest(path)
    assert new != old
    path.write_bytes(b"six")  # in place
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert store.file_digest(path) not in (old, new)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stores, "_MIN_AGE", -(10**12))
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    digest = stores.hashlib.file_digest
    monkeypatch.setattr(
        stores.hashlib, "file_digest", lambda *given: (digest(*given), path.write_bytes(b"three"))[0]
    )
    old = store.file_digest(path)
    monkeypatch.setattr(stores.hashlib, "file_digest", digest)
    assert store.file_digest(path) != old


def test_a_picture_is_on_the_disk_before_its_row_is_and_never_half(store, monkeypatch) -> None:
    seen: list[str] = []
    path = store.picture("k")
    sync, move, link = os.fsync, os.replace, os.link

    def noted(what: str, call: Callable) -> Callable:
        def run(*given, **how):
            seen.append(what)
            assert not store.outcomes(["k"]), "no row speaks of a picture that is not there yet"
            return call(*given, **how)

        return run

    monkeypatch.setattr(os, "fsync", noted("fsync", sync))
    monkeypatch.setattr(os, "replace", noted("move", move))
    monkeypatch.setattr(os, "link", noted("move", link))
    store.claim(["k"])
    store.finish([("k", Outcome(state=DONE, digest="d", metrics={}), b"picture")])
    assert seen.index("fsync") < seen.index("move") and path.read_bytes() == b"picture"
    assert store.outcomes(["k"])["k"].metrics == {}


def test_a_picture_that_cannot_be_written_whole_is_not_there_at_all(store, monkeypatch) -> None:
    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    store.claim(["k", "l"])
    with pytest.raises(InputError, match="no space left"):
        store.finish([("k", Outcome(state=DONE, digest="d"), b"picture")])
    assert not store.picture("k").exists() and not store.outcomes(["k"])
    assert not [path for path in (store.folder / "workers").iterdir() if path.suffix == ".png"]


def test_claims_end_with_the_cell_with_the_store_and_with_the_process(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as one, closing(Store(tmp_path)) as other:
        assert one.claim("ab") == ["a", "b"] and other.claim("abc") == ["c"]
        one.finish([("a", Outcome(state="failed", error="no"), None)])
        assert other.claim("ab") == [] and other.free("ab") == [] and other.free("ab", retry=True) == ["a"]
        assert other.claim("ab", retry=True) == ["a"], "what failed is free to be tried again, b is not"
        assert one.claim("ab", retry=True) == []
        with closing(sqlite3.connect(tmp_path / FILE)) as database:
            assert database.execute("select count(*) from claims").fetchone() == (3,)
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        assert database.execute("select count(*) from claims").fetchone() == (0,)
    assert not [*(tmp_path / "workers").iterdir()]


def test_verifying_has_sqlite_examine_its_file(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE)) as database:
        database.execute("pragma writable_schema = on")
        told = "update sqlite_schema set sql = replace(sql, 'error text', 'error text not null')"
        database.execute(told)
        database.commit()
    with closing(Store(folder)) as opened:
        assert load_results(opened).drawn.all()
        with pytest.raises(InputError, match=r"is damaged, or not a store of cells .*NULL value"):
            load_results(opened, verify=True)


def test_a_sweep_waits_for_what_others_are_drawing(folder: Path, monkeypatch) -> None:
    more = sweep("guidance=2,5,9", "seed=1-4")
    with closing(Store(folder)) as opened, closing(Store(folder)) as other:
        mine = other.claim(cell.key for cell in wanted(more))[:1]
        fake, waited = Real(), []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            outcome = Outcome(state=DONE, digest="", metrics={"red": 1.0})
            other.finish([(cell.key, outcome, None) for cell in wanted(more) if cell.key not in known])

        known = opened.outcomes(cell.key for cell in wanted(more))
        monkeypatch.setattr("ssd1b.jobs.driver.time.sleep", sleep)
        draw_jobs(plan(wanted(more), opened), opened, inline(fake))
        assert len(mine) == len(waited) == 1 and fake.drawn == 0
        assert len(opened.outcomes(cell.key for cell in wanted(more))) == 12


def test_what_a_killed_process_left_goes_when_the_store_is_opened(folder: Path) -> None:
    for name in ("dead.lock", "dead.png"):  # it had claimed nothing that anybody else wants
        (folder / "workers" / name).touch()
    with closing(Store(folder)) as opened:
        left = [path.stem for path in (folder / "workers").iterdir()]
        assert left == [opened._worker]


def test_what_a_dead_process_had_claimed_is_free(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as one, closing(Store(tmp_path)) as other:
        assert one.claim(["a", "b", "a"]) == ["a", "b"] and other.claim("abc") == ["c"]
        half = one._unfinished(one._worker)
        half.touch()
        one._lock.release()  # as the system does when a process dies
        assert other.claim("ab") == ["a", "b"] and not one.claim("abc")
        assert not half.exists(), "nor is what it had half written in anybody's way"


def test_a_hundred_thousand_cells_are_listed_in_seconds(store: Store) -> None:
    rows = [(f"{number:06}", (number,)) for number in range(100_000)]
    store.record("many", {}, rows)
    with at_most(5):
        assert sum(1 for _ in store.members("many")) == 100_000


def test_outcomes_come_back_as_they_were(store: Store) -> None:
    outcome = Outcome(state=DONE, digest="d", passes=8.0, metrics={"a": 1.0}, thumbnail=b"\0\xff")
    store.finish([("k", outcome, b"picture")])
    assert store.outcomes(["k", "unknown"]) == {"k": outcome}


def test_a_store_from_before_opens_and_nothing_in_it_is_drawn_again(tmp_path: Path, monkeypatch) -> None:
    """``tests/data/store`` was written by ssd1b 0.1.0, when the lab kept its cells itself."""
    shutil.copytree(Path(__file__).parents[2] / "data" / "store", tmp_path / "cells")
    with closing(sqlite3.connect(tmp_path / "cells" / FILE)) as database:
        database.executescript((tmp_path / "cells" / "cells.sql").read_text())
    monkeypatch.setattr("ssd1b.jobs.job.version", lambda name: "0.1.0")
    fake = Fake()
    with closing(Store(tmp_path / "cells")) as opened:
        assert load_results(opened, verify=True).drawn.all()
        run(opened, sweep("guidance=2,5", "seed=1"), fake)
        assert fake.drawn == 0 and len(opened.sweeps()) == 1
