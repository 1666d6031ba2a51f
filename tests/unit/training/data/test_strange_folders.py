"""Data as people have them: links, capitals, other kinds; and data of strangers, who may mean harm."""

import io
import json
import os
import tarfile
import warnings
from pathlib import Path

import pytest

from picture_files import as_bytes, smooth
from ssd1b.errors import InputError
from ssd1b.picture_names import UNREAD
from ssd1b.training.data.examples import Columns, Example
from ssd1b.training.data.scan import scan
from ssd1b.training.data.shards import expand_braces
from ssd1b.training.data.sources import open_source
from timing import at_most

PNG = as_bytes(smooth(40, 32))


def opened(path: str | Path) -> list[Example]:
    return open_source(path, Columns(), cache=Path(path).parent / "cache")


def scanned(path: str | Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    found, report = scan(opened(path), min_side=16)
    return {each.example.key: each.captions[0] for each in found}, report.unusable


def pair(folder: Path, stem: str, suffix: str = ".png", text: str = ".txt") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}{suffix}").write_bytes(PNG)
    (folder / f"{stem}{text}").write_text(f"caption of {stem}")


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    data = tmp_path / "data"
    pair(data, "here")
    pair(tmp_path / "elsewhere", "there")
    pair(tmp_path / "elsewhere/deep", "deeper")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere/deep")
    (data / "loop").symlink_to(data)
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/two").symlink_to(data)
    (data / "nothing").symlink_to(tmp_path / "gone")
    (data / "gone.png").symlink_to(tmp_path / "gone.png")
    good, bad = scanned(data)
    assert sorted(good.values()) == ["caption of deeper", "caption of here", "caption of there"]
    assert bad == {"caption missing": ["gone.png"]}
    link = tmp_path / "link to data"
    link.symlink_to(data)
    assert sorted(scanned(link)[0].values()) == sorted(good.values())


def test_each_folder_comes_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    folders = [tmp_path / f"data/{number:02d}" for number in range(30)]
    for folder in folders:
        pair(folder, folder.name)
    for folder in folders:  # ways without a loop: 2 to the power of 30
        for name, other in zip("ab", folders[int(folder.name) + 1 :], strict=False):
            (folder / name).symlink_to(other)
    assert len(scanned(tmp_path / "data")[0]) == 30


def test_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    pair(tmp_path / "set", "a", ".JPG", ".TXT")
    pair(tmp_path / "set", "b", ".PnG", ".Txt")
    pair(tmp_path / "set", "c", ".jfif")
    (tmp_path / "set/c.TXT").write_text("the other one")
    good, bad = scanned(tmp_path / "set")
    assert good == {"a.JPG": "caption of a", "b.PnG": "caption of b", "c.jfif": "caption of c"} and not bad

    (tmp_path / "named").mkdir()
    (tmp_path / "named/Metadata.JSONL").write_text(json.dumps({"file_name": "x.PNG", "text": "told"}))
    (tmp_path / "named/x.PNG").write_bytes(PNG)
    assert scanned(tmp_path / "named")[0] == {"x.PNG": "told"}

    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/A.TAR", "w") as archive:
        for name, data in (("1.PNG", PNG), ("1.TXT", b"in a tar")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert scanned(tmp_path / "tars")[0] == scanned(tmp_path / "tars/A.TAR")[0] == {"A.TAR/1": "in a tar"}


@pytest.mark.parametrize("suffix", UNREAD)
def test_pictures_of_a_kind_that_is_not_read_are_told(tmp_path: Path, suffix: str) -> None:
    pair(tmp_path / "set", "good")
    pair(tmp_path / "set", "one", suffix)
    pair(tmp_path / "set", "two", suffix.upper())
    good, bad = scanned(tmp_path / "set")
    assert good == {"good.png": "caption of good"}
    assert bad == {f"of a kind that is not read ({suffix})": [f"one{suffix}", f"two{suffix.upper()}"]}


OUTSIDE = {
    "up": "../secret.png",
    "far up": "../" * 60 + "{root}/secret.png",
    "up in the middle": "sub/../../secret.png",
    "absolute": "{root}/secret.png",
    "two slashes": "//{root}/secret.png",
    "a link": "link.png",
    "a linked folder": "linked/secret.png",
    "a link to a link": "second.png",
    "a device": "/dev/zero",
    "a process": "/proc/self/environ",
}


def hostile(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    pair(tmp_path, "secret")
    pair(data, "good")
    (data / "sub").mkdir()
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    (data / "second.png").symlink_to("link.png")
    (data / "linked").symlink_to(tmp_path)
    return data


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_row_of_metadata_that_leads_outside_is_refused(tmp_path: Path, kind: str) -> None:
    data = hostile(tmp_path)
    name = OUTSIDE[kind].format(root=tmp_path)
    rows = [{"file_name": "good.png", "text": "good"}, {"file_name": name, "text": "bad"}]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"metadata\.jsonl:2 names .* not inside the data: refused") as told:
        scanned(data)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_a_row_of_a_table_that_leads_outside_is_refused(tmp_path: Path, kind: str, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    data = hostile(tmp_path)
    name = OUTSIDE[kind].format(root=tmp_path)
    table = datasets.Dataset.from_dict({"image": ["good.png", name], "text": ["good", "bad"]})
    if form == "parquet":
        table.to_parquet(data / "t.parquet")
    else:
        table.save_to_disk(data)
    with pytest.raises(InputError, match=r"^row 1 of .* not inside the data: refused"):
        scanned(data / "t.parquet" if form == "parquet" else data)


@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "/etc/passwd", "..", "", 5, None])
def test_a_saved_dataset_names_files_of_its_own_alone(tmp_path: Path, name: object) -> None:
    datasets = pytest.importorskip("datasets")
    for folder in ("data", "other"):
        datasets.Dataset.from_dict({"image": ["a.png"], "text": ["a"]}).save_to_disk(tmp_path / folder)
    state = tmp_path / "data/state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": name}]}))
    with pytest.raises(InputError, match="not inside the data: refused"):
        opened(tmp_path / "data")
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": ["../data"]}))
    with pytest.raises(InputError, match="not inside the data: refused"):
        opened(splits)


def test_a_snapshot_in_the_hubs_cache_is_all_links_and_read(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--a--b"
    snapshot, blobs = repository / "snapshots/abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_bytes(PNG)
    (blobs / "2").write_text(json.dumps({"file_name": "a.png", "text": "linked"}))
    (snapshot / "a.png").symlink_to("../../blobs/1")
    (snapshot / "metadata.jsonl").symlink_to("../../blobs/2")
    assert scanned(snapshot)[0] == {"a.png": "linked"}


def test_a_linked_folder_with_metadata_of_its_own_is_read(tmp_path: Path) -> None:
    pair(tmp_path / "elsewhere", "a")
    (tmp_path / "elsewhere/metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "told"}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    assert scanned(tmp_path / "data")[0] == {"linked/a.png": "told"}


ROWS = {
    "null": '{"file_name": null, "text": "x"}',
    "number": '{"file_name": 5, "text": "x"}',
    "list": '{"file_name": ["a.png"], "text": "x"}',
    "empty": '{"file_name": "", "text": "x"}',
    "null character": '{"file_name": "a\\u0000.png", "text": "x"}',
    "half a pair": '{"file_name": "\\ud800.png", "text": "x"}',
    "too long a name": json.dumps({"file_name": "x" * 5000, "text": "x"}),
    "deep": "[" * 100_000,
    "no caption": '{"file_name": "good.png"}',
    "no UTF-8": "\xff\xfe",
    "a folder": '{"file_name": "sub", "text": "x"}',
    "a pipe": '{"file_name": "pipe.png", "text": "x"}',
    "a number of 5,000 digits": '{"file_name": ' + "9" * 5000 + "}",
    "huge": '{"file_name": "huge.png", "text": "x"}',
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_cannot_be_are_counted(tmp_path: Path, kind: str) -> None:
    pair(tmp_path / "set", "good")
    (tmp_path / "set/sub").mkdir()
    os.mkfifo(tmp_path / "set/pipe.png")
    with (tmp_path / "set/huge.png").open("wb") as file:
        file.truncate(200 * 2**30)
    rows = ['{"file_name": "good.png", "text": "good"}', ROWS[kind]]
    (tmp_path / "set/metadata.jsonl").write_bytes("\n".join(rows).encode("latin-1", "replace"))
    good, bad = scanned(tmp_path / "set")
    assert good == {"good.png": "good"}
    assert sum(map(len, bad.values())) == 1


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "metadata.jsonl").open("wb") as file:
        file.truncate(200 * 2**30)
    with pytest.raises(InputError, match="has a line of more than 1048576 bytes"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        "s-{0..999999999}.tar", "s-{0..9999999999999999}.tar", "{0..9999}{0..9999}.tar", "s-{5..1}.tar",
        "{0..99}" * 12 + ".tar", "s-{0.." + "9" * 5000 + "}.tar",
    ],
)  # fmt: skip
def test_patterns_of_too_many_shards_are_refused_at_once(pattern: str) -> None:
    with (
        at_most(5),
        pytest.raises(InputError, match=r"allowed are 1 to \d+|may have at most 9 digits") as error,
    ):
        expand_braces(pattern)
    assert len(str(error.value)) < 400


def header(name: str, *, size: int | bytes = 0, kind: bytes = b"0", link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    data = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = size if isinstance(size, bytes) else tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    data[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(data))[0]
    return bytes(data)


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


SECRET = "/etc/hostname"
MEMBERS: dict[str, bytes] = {
    "symbolic link": header("2.png", kind=b"2", link=SECRET) + header("2.txt", kind=b"2", link=SECRET),
    "hard link": header("2.png", kind=b"1", link=SECRET) + header("2.txt", kind=b"1", link="1.txt"),
    "device": header("2.png", kind=b"3") + header("2.txt", kind=b"4"),
    "pipe": header("2.png", kind=b"6"),
    "folder": header("2.png", kind=b"5"),
    "beyond the file": header("2.png", size=10**6),
    "200 GB": header("2.png", size=200 * 2**30),
    "2^70": header("2.png", size=b"\x80\0\0\x40" + bytes(8)),
    "below 0": header("2.png", size=-512),
    "far below 0": header("2.png", size=-(2**40)),
    "size that is none": header("2.png", size=b"abcdefghijk\0"),
    "long name of 100 GB": header("x", size=100 * 2**30, kind=b"L"),
    "attributes of 100 GB": header("x", size=100 * 2**30, kind=b"x"),
    "attributes of 2 MB": header("x", size=2**21, kind=b"x") + bytes(2**21),
    "attributes that are none": header("x", size=512, kind=b"x") + block(b"\xff" * 512),
    "size in attributes": header("x", size=20, kind=b"x") + block(b"20 size=-1000000000\n") + header("2.png"),
    "10,000 names of names": (header("x", size=1, kind=b"L") + block(b"y")) * 10_000,
    "path outside": header("../../2.png", size=len(PNG)) + block(PNG),
    "sparse": header("2.png", size=len(PNG), kind=b"S") + block(PNG),
}  # fmt: skip


@pytest.mark.parametrize("kind", MEMBERS)
def test_members_that_mean_harm_cost_neither_memory_nor_the_others(tmp_path: Path, kind: str) -> None:
    good = header("1.png", size=len(PNG)) + block(PNG) + header("1.txt", size=4) + block(b"good")
    (tmp_path / "a.tar").write_bytes(good + MEMBERS[kind] + bytes(1024))
    with at_most(20):
        found, bad = scanned(tmp_path / "a.tar")
    assert found == {"a.tar/1": "good"}
    assert kind == "folder" or sum(map(len, bad.values())) >= 1


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    pair(tmp_path / "set", "a")
    (tmp_path / "set/closed").mkdir(mode=0o000)
    if os.access(tmp_path / "set/closed", os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(InputError, match=r"cannot read .*closed"):
        opened(tmp_path / "set")


@pytest.mark.parametrize("path", ["x\0y", "x" * 300, "a/" * 3000])
def test_paths_that_cannot_be(path: str) -> None:
    with warnings.catch_warnings(), pytest.raises(InputError):
        opened(path)
