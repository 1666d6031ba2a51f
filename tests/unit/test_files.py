"""Files of others: opened if they are files; paths of users: refused in one line if they are none."""

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.errors import InputError, NotFoundError
from ssd1b.files import check_regular, decode_text, expand_path, named, open_regular, read_file


@pytest.fixture
def others(tmp_path):
    """Everything that is no file, by what it is called; and links to it."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(tmp_path)  # names of sockets are short
        bound.bind("socket")
        kinds = {"folder": "a folder", "pipe": "a named pipe", "socket": "a socket"}
        for name in list(kinds):
            (tmp_path / f"to {name}").symlink_to(name)
        yield {
            **{str(tmp_path / name): kind for name, kind in kinds.items()},
            **{str(tmp_path / f"to {name}"): kind for name, kind in kinds.items()},
            "/dev/null": "a device",
            "/dev/zero": "a device",
            "/dev/tty": "a device",
        }


@pytest.mark.parametrize("read", [check_regular, open_regular, lambda path: read_file(path, most=9)])
def test_only_files_are_opened(others, read):
    for path, kind in others.items():
        with pytest.raises(InputError, match=f"cannot read {path}: it is {kind}, not a file"):
            read(path)


@pytest.mark.parametrize("read", [check_regular, open_regular, lambda path: read_file(path, most=9)])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "No such file"),
        ("file/deep", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("x/" * 5000, "File name too long"),
        ("a\0b", "null"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_cannot_be_opened_is_named_in_one_short_line(tmp_path, read, name, words):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"cannot read .*{words}") as refused:
        read(f"{tmp_path}/{name}")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


def test_no_more_is_read_than_is_allowed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, most=5) == b"12345"
    with pytest.raises(InputError, match=r"file is too large: at most 4 bytes are allowed"):
        read_file(path, most=4)
    with path.open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(InputError, match="too large"):
        read_file(path, most=2**20)


@pytest.mark.parametrize("read", [check_regular, open_regular, lambda path: read_file(path, most=9)])
@pytest.mark.parametrize(
    ("target", "words"),
    [("gone/away", "is a link to gone/away, which does not exist"), ("link", "is a link that leads back")],
)
def test_links_that_lead_nowhere_are_named(tmp_path, read, target, words):
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(NotFoundError, match=f"link {words}"):
        read(tmp_path / "link")


def test_links_to_files_are_files(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link", most=1) == b"1"


def test_a_disk_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"1")

    class Failing:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("ssd1b.files.open_regular", lambda path: Failing())
    with pytest.raises(InputError, match=r"cannot read .*file: Input/output error"):
        read_file(tmp_path / "file", most=1)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=r"cannot read .*file: Permission denied"):
        open_regular(tmp_path / "file")


# Paths


def test_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_path("~/pictures/") == f"{tmp_path}/pictures/"
    assert expand_path("~") == str(tmp_path)
    assert expand_path("a/~/b") == "a/~/b"
    assert expand_path("nothing/there") == "nothing/there"


def test_a_file_that_begins_with_a_tilde_is_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~draft-2").touch()
    assert expand_path("~draft-2") == "~draft-2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("~nosuchuser", "no user of that name"),
        ("~nosuchuser/pictures", "no user of that name"),
        ("a\0b", "null"),
        ("x" * 300, "File name too long"),
        ("new/" + "x" * 300 + "/more", "File name too long"),
        ("x/" * 5000, "File name too long"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_can_be_no_path_is_named_in_one_short_line(monkeypatch, tmp_path, text, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as refused:
        expand_path(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_a_folder_that_may_not_be_searched_is_named(monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "lstat", refuse)
    with pytest.raises(InputError, match="locked/model cannot be a path here: Permission denied"):
        expand_path("locked/model")


def test_paths_are_written_shortly_and_plainly():
    assert named("a/b.png") == "a/b.png"
    assert named("a b") == "a b"
    assert named("a\x1b[31m\nb") == r"'a\x1b[31m\nb'"
    assert named(" a") == "' a'"
    assert named("") == "''"
    long = named("/start/" + "x" * 1000 + "/end.png")
    assert long.startswith("/start/xxx") and long.endswith("xxx/end.png") and len(long) == 160


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_text_is_read_in_every_encoding_that_its_first_bytes_tell(encoding):
    mark = "\ufeff" if encoding.endswith("e") else ""
    assert decode_text(f"{mark}日本\r\na".encode(encoding), "it") == "日本\r\na"
    assert decode_text(mark.encode(encoding), "it") == ""


@pytest.mark.parametrize(
    "data",
    ["é".encode("latin-1"), "日".encode("shift-jis"), "ab".encode("utf-16-le"), b"\0", b"\xff\xfea",
     b"\xff\xfe\0\xd8", b"\xff\xfe\0\0\0\0\x11\0", b"\xef\xbb\xbf\xff", b"\xef\xbb", b"\xff\xfea\0\0\0"],
)  # fmt: skip
def test_other_text_is_refused_in_a_line_that_says_what_to_do(data):
    with pytest.raises(InputError, match=r"prompts\.txt is not .*save it as UTF-8"):
        decode_text(data, "prompts.txt")


@given(st.binary(max_size=40))
def test_any_bytes_are_text_or_refused(data):
    try:
        assert "\0" not in decode_text(data, "it")
    except InputError as refused:
        assert "save it as UTF-8" in str(refused)
