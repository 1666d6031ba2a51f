"""Whole files or none, on the disk before they are believed in, and never over what belongs to the user."""

import errno
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ssd1b.errors import InputError
from ssd1b.saving import (
    MARKS,
    check_folder,
    check_free,
    check_renewable,
    claim_folder,
    renewing,
    replacing,
    take_name,
    writing,
)

WRITERS = {
    "writing": writing,
    "overwriting": lambda target: writing(target, overwrite=True),
    "renewing": renewing,
    "renewing over": lambda target: renewing(target, overwrite=True),
    "replacing": replacing,
}
CAREFUL = ["writing", "renewing"]
BOLD = ["overwriting", "renewing over", "replacing"]


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != MARKS)


def photos(folder: Path) -> Path:
    folder.mkdir()
    (folder / "one.jpg").write_text("mine")
    return folder


# What is never replaced


def test_a_file_is_never_written_over_a_folder(tmp_path, write):
    photos(tmp_path / "demo.png")
    (tmp_path / "empty.png").mkdir()
    for name in ("demo.png", "empty.png"):
        with pytest.raises(InputError, match=rf"cannot write .*{name}: a folder has that name"):
            with write(tmp_path / name) as aside:
                aside.write_text("picture")
    assert names(tmp_path) == ["demo.png", "empty.png"]
    assert (tmp_path / "demo.png/one.jpg").read_text() == "mine"


def test_a_folder_is_never_written_over_a_folder_of_the_user(tmp_path, write):
    photos(tmp_path / "model")
    with pytest.raises(InputError, match="a folder has that name"), write(tmp_path / "model") as aside:
        aside.mkdir()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["one.jpg"]


def test_a_folder_is_never_written_over_a_file(tmp_path, write):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match=r"model"), write(tmp_path / "model") as aside:
        aside.mkdir()
    assert (tmp_path / "model").read_text() == "mine"
    assert names(tmp_path) == ["model"]


def test_links_pipes_and_devices_are_never_replaced(tmp_path, write):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    photos(tmp_path / "folder")
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    before = names(tmp_path)
    for name, kind in (
        ("link", "a link"),
        ("dangling", "a link"),
        ("to-folder", "a link"),
        ("pipe", "a named pipe"),
    ):
        with (
            pytest.raises(InputError, match=rf"{name}: {kind} has that name"),
            write(tmp_path / name) as aside,
        ):
            aside.write_text("ours")
    assert names(tmp_path) == before
    assert (tmp_path / "file").read_text() == "mine"
    assert os.readlink(tmp_path / "dangling") == str(tmp_path / "nowhere")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("name", CAREFUL)
def test_a_users_file_is_kept_unless_overwriting_was_asked_for(tmp_path, name):
    target = tmp_path / "sheet.png"
    target.write_text("mine")
    with pytest.raises(InputError, match=r"sheet\.png already exists: .*--overwrite"):
        with WRITERS[name](target) as aside:
            aside.write_text("ours")
    assert (target.read_text(), names(tmp_path)) == ("mine", ["sheet.png"])
    assert not (tmp_path / MARKS).exists()


@pytest.mark.parametrize("name", BOLD)
def test_a_file_is_replaced_where_that_was_asked_for(tmp_path, name):
    target = tmp_path / "sheet.png"
    target.write_text("mine")
    with WRITERS[name](target) as aside:
        aside.write_text("ours")
    assert (target.read_text(), names(tmp_path)) == ("ours", ["sheet.png"])


def test_a_file_of_the_same_content_is_no_obstacle(tmp_path):
    for _ in range(2):
        with writing(tmp_path / "a.png") as aside:
            aside.write_text("the same")
    assert names(tmp_path) == ["a.png"]


def test_a_name_that_is_taken_meanwhile_stays_with_who_took_it(tmp_path):
    with pytest.raises(InputError, match="already exists"), writing(tmp_path / "a.png") as aside:
        aside.write_text("ours")
        (tmp_path / "a.png").write_text("mine")
    assert (tmp_path / "a.png").read_text() == "mine"


def test_a_free_name_is_taken_in_a_step_that_can_replace_nothing(tmp_path, monkeypatch):
    """Between a look and a move somebody else could take the name."""
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("could have replaced a file"))
    for name, write in WRITERS.items():
        with write(tmp_path / name) as aside:
            aside.touch()


# What it wrote itself


def renewed(target: Path, text: str) -> None:
    with renewing(target) as aside:
        aside.write_text(text)


def test_what_was_renewed_is_renewed_again(tmp_path):
    for text in ("one", "two", "three"):
        renewed(tmp_path / "report.html", text)
        check_renewable(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "three"


@pytest.mark.parametrize("changed", ["two, edited", "tvo"])
def test_what_the_user_changed_is_the_users(tmp_path, changed):
    target = tmp_path / "preset.json"
    renewed(target, "one")
    renewed(target, "two")
    target.write_text(changed)
    with pytest.raises(InputError, match="already exists"):
        check_renewable(target)
    with pytest.raises(InputError, match="already exists"):
        renewed(target, "three")
    assert target.read_text() == changed


def test_of_a_large_file_the_size_tells_that_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("ssd1b.saving._DIGESTED", 4)
    renewed(tmp_path / "a", "long text")
    (tmp_path / "a").write_text("long text, and more")
    with pytest.raises(InputError, match="already exists"):
        renewed(tmp_path / "a", "two")


def test_a_link_in_a_marked_files_place_is_the_users(tmp_path):
    renewed(tmp_path / "a", "one")
    (tmp_path / "a").rename(tmp_path / "kept")
    (tmp_path / "a").symlink_to("kept")
    with pytest.raises(InputError, match="a link has that name"):
        renewed(tmp_path / "a", "two")


def test_a_mark_is_of_one_name_in_one_folder(tmp_path):
    renewed(tmp_path / "a/report.html", "one")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/report.html", tmp_path / "b/report.html")
    shutil.copy(tmp_path / "a/report.html", tmp_path / "a/copy.html")
    for path in ("b/report.html", "a/copy.html"):
        with pytest.raises(InputError, match="already exists"):
            renewed(tmp_path / path, "two")


def test_a_folder_that_moved_keeps_its_marks(tmp_path):
    renewed(tmp_path / "a/report.html", "one")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    renewed(tmp_path / "b/report.html", "two")


def make(folder: Path, **files: str) -> None:
    with renewing(folder) as aside:
        (aside / "unet").mkdir(parents=True)
        for name, text in files.items():
            (aside / "unet" / name).write_text(text)


def test_a_folder_of_its_own_is_replaced_whole(tmp_path):
    make(tmp_path / "model", old="1")
    make(tmp_path / "model", new="2")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model/unet") == ["new"]


@pytest.mark.parametrize("change", ["added", "edited", "deep", "removed", "linked"])
def test_a_folder_that_the_user_changed_is_never_replaced(tmp_path, change):
    model = tmp_path / "model"
    make(model, config="1")
    changes = {
        "added": lambda: (model / "lora.safetensors").write_text("mine"),
        "edited": lambda: (model / "unet/config").write_text("2"),
        "deep": lambda: (model / "unet/deep").mkdir(),
        "removed": lambda: (model / "unet/config").unlink(),
        "linked": lambda: (model / "photos").symlink_to(tmp_path),
    }
    changes[change]()
    before = sorted(model.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(InputError, match="a folder has that name"):
            check_renewable(model, overwrite=overwrite)
    with pytest.raises(InputError, match="a folder has that name"):
        make(model, config="3")
    assert sorted(model.rglob("*")) == before
    assert names(tmp_path) == ["model"]


def test_marks_that_are_no_file_are_named_and_waited_for_by_nobody(tmp_path):
    os.mkfifo(tmp_path / MARKS)
    with pytest.raises(InputError, match="named pipe"):
        renewed(tmp_path / "a", "one")
    assert names(tmp_path) == []


def test_several_processes_may_renew_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: renewed(tmp_path / f"{n}.txt", str(n)), range(64)))
    for number in range(64):
        check_renewable(tmp_path / f"{number}.txt")


# A folder of the program's own


def test_a_new_or_empty_folder_is_claimed_and_known_again(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deep"):
        claim_folder(tmp_path / name)
        (tmp_path / name / "log.jsonl").touch()
        claim_folder(tmp_path / name)


def test_a_folder_of_the_user_is_not_claimed(tmp_path):
    photos(tmp_path / "photos")
    with pytest.raises(InputError, match="contains files that ssd1b did not write"):
        claim_folder(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.jpg"]
    with pytest.raises(InputError, match="Not a directory"):
        claim_folder(tmp_path / "photos/one.jpg/deep")


# Whole or not at all


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    for failure in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(failure), replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise failure
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert target.read_bytes() == b"old"


def test_until_it_is_whole_the_old_file_stays(tmp_path, write):
    for content in (b"one", b"two"):
        target = tmp_path / content.decode()
        with write(target) as aside:
            aside.write_bytes(content[:1])
            assert not target.exists()
            assert aside.parent == tmp_path and aside.name.startswith(".")
            aside.write_bytes(content)
    with replacing(tmp_path / "one") as aside:
        aside.write_bytes(b"new")
        assert (tmp_path / "one").read_bytes() == b"one"
    assert (tmp_path / "one").read_bytes() == b"new"


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path):
    make(tmp_path / "model", old="1")
    with pytest.raises(KeyboardInterrupt), renewing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model/unet") == ["old"]


def test_if_the_new_folder_cannot_be_moved_the_old_one_comes_back(tmp_path, monkeypatch):
    make(tmp_path / "model", old="1")
    rename = Path.rename

    def refuse(self, other):
        if self.name.endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match="Permission denied; nothing was changed"):
        make(tmp_path / "model", new="2")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model/unet") == ["old"]


def test_a_full_disk_is_called_that(tmp_path, write):
    with pytest.raises(InputError, match="no space left on the disk"), write(tmp_path / "model"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_that_the_disk_takes_can_be_written(tmp_path, write):
    with write(tmp_path / ("x" * 251 + ".png")) as aside:
        aside.touch()


def test_what_is_written_has_the_permissions_of_any_new_file(tmp_path, write):
    (tmp_path / "other").touch()
    with write(tmp_path / "file") as aside:
        aside.touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


# On the disk before it is believed in


@contextmanager
def recorded(monkeypatch):
    """What is synchronised with the disk, and what gets its name, in their order."""
    told: list[tuple[str, str]] = []
    fsync, link, replace, rename = os.fsync, os.link, os.replace, Path.rename

    def note(what, function):
        def call(*arguments):
            place = arguments[-1]
            path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
            told.append((what, Path(path).name))
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", note("sync", fsync))
    monkeypatch.setattr(os, "link", note("name", link))
    monkeypatch.setattr(os, "replace", note("name", replace))
    monkeypatch.setattr(Path, "rename", note("name", rename))
    yield told
    monkeypatch.undo()


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="needs Linux to tell which file was synchronised"
)
@pytest.mark.parametrize("there", [False, True])
def test_a_file_is_on_the_disk_before_it_gets_its_name_and_then_the_name_is(
    tmp_path, monkeypatch, write, there
):
    if there:
        with write(tmp_path / "a") as aside:
            aside.write_text("a")
        if write is writing:
            pytest.skip("never over another")
    with recorded(monkeypatch) as told, write(tmp_path / "a") as aside:
        aside.write_text("b")
    assert told[0] == ("sync", aside.name)
    assert ("name", "a") in told[1:]
    assert told[-1] == ("sync", tmp_path.name)


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="needs Linux to tell which file was synchronised"
)
def test_a_folder_is_on_the_disk_with_all_that_is_in_it_before_it_gets_its_name(tmp_path, monkeypatch):
    with recorded(monkeypatch) as told:
        make(tmp_path / "model", one="1", two="2")
    named = told.index(("name", "model"))
    assert {name for _, name in told[:named]} >= {"one", "two", "unet"}
    assert all(what == "sync" for what, _ in told[:named])
    assert told[named + 1 :] == [("sync", tmp_path.name)]


def test_a_cache_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    with recorded(monkeypatch) as told, replacing(tmp_path / "a", durable=False) as aside:
        aside.touch()
    assert [what for what, _ in told] == ["name"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_the_disk_did_not_take_is_not_believed_in(tmp_path, monkeypatch, write, code):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="nothing was changed"), write(tmp_path / "a") as aside:
        aside.touch()
    assert names(tmp_path) == []


def test_a_name_is_taken_once(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for attempt in range(2):
        target = tmp_path / f"target {attempt}"
        for number, free in enumerate((True, False)):
            (tmp_path / "aside").write_text(str(number))
            assert take_name(tmp_path / "aside", target) is free
        assert target.read_text() == "0"
        monkeypatch.setattr(os, "link", no_links)


# Before the work


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file/deep", "Not a directory"),
        ("file/deep/deeper", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("new/" + "x" * 300, "File name too long"),
        ("/".join(["x" * 200] * 30), "File name too long"),
        ("a\0b", "null"),
        ("loop/deep", "symbolic links"),
        ("half-\ud800", "surrogates not allowed"),
    ],
)
def test_where_nothing_can_be_written_is_known_before(tmp_path, path, words):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for check in (check_folder, check_free, check_renewable, claim_folder):
        with pytest.raises(InputError, match=words) as refused:
            check(tmp_path / path / "file" if check is not check_folder else tmp_path / path)
        assert len(str(refused.value)) < 400
    assert names(tmp_path) == ["file", "loop"]


def test_a_folder_without_permission_is_known_before(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="Permission denied"):
        check_folder(tmp_path / "new")


def test_what_is_free_is_free(tmp_path):
    (tmp_path / "file").touch()
    check_free(tmp_path / "new/a")
    check_free(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="already exists"):
        check_free(tmp_path / "file")
    assert names(tmp_path) == ["file"]
