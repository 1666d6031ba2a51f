"""Every kind of source gives the same examples, and says of broken ones what is wrong with them."""

import gzip
import io
import json
import os
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from picture_files import as_bytes, smooth
from ssd1b.errors import InputError
from ssd1b.training.data.examples import Columns, Example, Unusable
from ssd1b.training.data.scan import Scanned, in_threads, scan
from ssd1b.training.data.sources import Source, open_source, open_sources

PNG = as_bytes(smooth(40, 32))
JPEG = as_bytes(smooth(32, 48), "JPEG")


def opened(path: str | Path, **columns: str) -> list[Example]:
    return open_source(path, Columns(**columns), cache=Path(path).parent / "cache")


def scanned(examples: list[Example]) -> tuple[dict[str, tuple[str, ...]], dict[str, list[str]]]:
    found, report = scan(examples, min_side=16)
    return {each.example.key: each.captions for each in found}, report.unusable


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_folder_with_text_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {
        "b.png": PNG, "b.txt": "  a cat \n",
        "a/deep.JPG": JPEG, "a/deep.txt": "\ufeffa dög",
        "c.png": PNG,
        "d.png": PNG, "d.txt": " \n",
        "e.png": PNG, "e.txt": b"caf\xe9",
        "f.png": PNG[:20], "f.txt": "cut short",
        "g.png": b"<html>", "g.txt": "no picture",
        "h.webp": as_bytes(smooth(40, 8), "WEBP"), "h.txt": "flat",
        "i.png": PNG, "i.txt": "x" * 10_001,
        "j.png": PNG, "j.txt": "a\0b",
        "notes.txt": "of nothing", ".hidden.png": PNG,
    })  # fmt: skip
    good, bad = scanned(opened(folder))
    assert good == {"a/deep.JPG": ("a dög",), "b.png": ("a cat",)}
    assert bad == {
        "caption missing": ["c.png"],
        "caption empty": ["d.png"],
        ".txt file: caption is not UTF-8": ["e.png"],
        "picture damaged": ["f.png"],
        "no PNG, JPEG or WebP": ["g.png"],
        "picture smaller than 16 pixels": ["h.webp"],
        "caption longer than 10000 characters": ["i.png"],
        "caption with a null or an invalid character": ["j.png"],
    }


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    lines = [
        json.dumps({"file_name": "one.png", "text": "first"}),
        json.dumps({"file_name": "sub/two.jpg", "text": ["a", "b"], "other": "c"}),
        "",
        "{broken",
        json.dumps({"text": "no file"}),
        json.dumps({"file_name": "gone.png", "text": "gone"}),
        json.dumps({"file_name": "one.png", "text": None}),
    ]
    folder = write(tmp_path / "set", {
        "metadata.jsonl": "\n".join(lines),
        "one.png": PNG, "sub/two.jpg": JPEG, "unlisted.png": PNG,
        "nested/metadata.jsonl": json.dumps({"file_name": "three.png", "text": "third"}),
        "nested/three.png": PNG,
    })  # fmt: skip
    good, bad = scanned(opened(folder))
    assert good == {"one.png": ("first",), "sub/two.jpg": ("a", "b"), "nested/three.png": ("third",)}
    assert bad == {
        "no line of metadata.jsonl with a file_name": ["metadata.jsonl:4", "metadata.jsonl:5"],
        "file missing or not readable": ["gone.png"],
        "caption missing": ["one.png"],
    }
    good, _ = scanned(opened(folder, caption="other"))
    assert good == {"sub/two.jpg": ("c",)}


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_webdataset_shards(tmp_path: Path) -> None:
    tar(tmp_path / "s-09.tar", {
        "0001.txt": b"from text", "0001.png": PNG, "0001.json": b'{"caption": "from json"}',
        "x/0001.jpg": JPEG, "x/0001.json": b'{"caption": "below"}',
        "0002.txt": b"no picture",
    })  # fmt: skip
    tar(tmp_path / "s-10.tar", {"0001.seg.png": PNG, "0001.JPEG": JPEG, "0001.txt": b"second shard"})
    good, bad = scanned(opened(f"{tmp_path}/s-{{09..10}}.tar"))
    assert good == {
        "s-09.tar/0001": ("from text",), "s-09.tar/x/0001": ("below",), "s-10.tar/0001": ("second shard",),
    }  # fmt: skip
    assert bad == {"picture missing": ["s-09.tar/0002"]}
    assert [each.key for each in opened(tmp_path)] == [*[*good][:2], "s-09.tar/0002", "s-10.tar/0001"]
    assert scanned(opened(tmp_path / "s-09.tar", caption="caption"))[0]["s-09.tar/0001"] == ("from json",)
    assert opened(tmp_path / "s-10.tar")[0].picture() == JPEG


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_what_a_damaged_shard_lost_is_counted(tmp_path: Path, damage: str) -> None:
    files = {
        f"{index:03d}.{kind}": PNG if kind == "png" else b"text"
        for index in range(40)
        for kind in ("png", "txt")
    }
    whole = tar(tmp_path / "whole.tar", files)
    broken = tar(tmp_path / "a-broken.tar", files)
    with tarfile.open(whole) as archive:
        at = archive.getmember("010.png").offset
    data = bytearray(broken.read_bytes())
    if damage == "cut":
        del data[at + 700 :]
    else:
        data[at : at + 512] = b"?" * 512
    broken.write_bytes(data)
    good, bad = scanned(opened(tmp_path))
    assert len(good) == 50
    if damage == "header":
        assert len(bad["shard damaged"]) == pytest.approx(30, abs=4)
    else:
        assert bad["shard damaged"]


def test_shards_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s-1.tar: no such shard"):
        opened(f"{tmp_path}/s-{{1..2}}.tar")
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress(tar(tmp_path / "a.tar", {"a.png": PNG}).read_bytes()))
    with pytest.raises(InputError, match="compressed"):
        opened(packed)
    (tmp_path / "page.tar").write_text("<html>")
    assert scanned(opened(tmp_path / "page.tar"))[1] == {"shard damaged": ["page.tar, lost part 0"]}


@pytest.mark.parametrize("kind", ["saved", "split", "parquet"])
def test_datasets(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    pictures = [
        {"bytes": PNG, "path": None},
        {"bytes": JPEG, "path": None},
        None,
        {"bytes": PNG, "path": None},
    ]
    data = datasets.Dataset.from_dict(
        {"photo": pictures, "text": ["a", "b", "c", None]},
        features=datasets.Features(photo=datasets.Image(), text=datasets.Value("string")),
    )
    path = tmp_path / ("set.parquet" if kind == "parquet" else "set")
    if kind == "parquet":
        data.to_parquet(path)
    else:
        (datasets.DatasetDict(test=data) if kind == "split" else data).save_to_disk(path)
    examples = opened(path, image="photo", **({"split": "test"} if kind == "split" else {}))
    assert examples[1].picture() == JPEG
    good, bad = scanned(examples)
    assert good == {"row 0": ("a",), "row 1": ("b",)}
    assert bad == {"picture missing": ["row 2"], "caption missing": ["row 3"]}
    with pytest.raises(InputError, match=r"image column 'foto': did you mean 'photo'"):
        opened(path, image="foto", split="test")
    with pytest.raises(InputError, match=r"caption column"):
        opened(path, image="photo", caption="words", split="test")
    if kind == "split":
        with pytest.raises(InputError, match="split 'train'"):
            opened(path, image="photo")


def test_datasets_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "set.parquet").touch()
    with pytest.raises(InputError, match=r"pip install 'ssd1b\[train\]'"):
        opened(tmp_path / "set.parquet")


def test_no_dataset_in_a_parquet_file(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as a dataset"):
        opened(tmp_path / "set.parquet")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(InputError, match="contains no images"):
        opened(tmp_path)


def test_threads_keep_the_order_and_pass_on_errors() -> None:
    assert list(in_threads(lambda each: each * 2, range(300), label="double")) == list(range(0, 600, 2))
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda each: 1 // each, [1, 0], label="divide"))


def test_a_picture_has_the_size_that_people_see(tmp_path: Path) -> None:
    turned = as_bytes(
        smooth(48, 32),
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    )
    write(tmp_path, {"a.jpg": turned, "a.txt": "on its side"})
    (found,), _ = scan(opened(tmp_path), min_side=1)
    assert isinstance(found, Scanned)
    assert found.size == (48, 32)


@pytest.mark.parametrize("name", ["metadata.jsonl", "shard.tar"])
def test_a_pipe_in_the_place_of_a_list_is_named_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError):
        open_source(tmp_path, Columns(), cache=tmp_path)


def test_a_pipe_in_the_place_of_a_picture_or_caption_is_left_out(tmp_path):
    os.mkfifo(tmp_path / "one.png")
    os.mkfifo(tmp_path / "one.txt")
    (example,) = open_source(tmp_path, Columns(), cache=tmp_path)
    for read in (example.picture, example.captions):
        with pytest.raises(Unusable, match="not readable"):
            read()


def test_folders_named_as_in_sd_scripts_are_repeated(tmp_path: Path) -> None:
    kohya = write(tmp_path / "kohya", {
        "10_sks dog/a.png": PNG, "10_sks dog/a.txt": "a dog",
        "10_sks dog/b.png": PNG,
        "2_style/deep/c.png": PNG,
    })  # fmt: skip
    found = {each.key: (each.repeats, *each.captions()) for each in opened(kohya)}
    assert found == {
        "10_sks dog/a.png": (10, "a dog"),
        "10_sks dog/b.png": (10, "sks dog"),
        "2_style/deep/c.png": (2, "style"),
    }
    # One folder by itself, or one image outside of such folders: names are names.
    assert [each.repeats for each in opened(kohya / "10_sks dog")] == [1, 1]
    write(kohya, {"d.png": PNG})
    assert {each.repeats for each in opened(kohya)} == {1}
    numbered = write(tmp_path / "numbered", {"0_cat/a.png": PNG, "1_dog/b.png": PNG})
    assert {each.repeats for each in opened(numbered)} == {1}, "numbers that begin with 0 are no repeats"
    years = write(tmp_path / "years", {"2023_rome/a.png": PNG, "2024_oslo/b.png": PNG})
    assert {each.repeats for each in opened(years)} == {1}, "nor are years"


def test_several_sources_have_their_own_repeats_triggers_and_masks(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a.png": PNG, "a.txt": "a", "a.mask.png": PNG})
    two = write(tmp_path / "two", {"3_x/a.png": PNG, "3_x/b.png": PNG})
    write(tmp_path / "masks", {"3_x/b.jpg": JPEG})
    sources = [
        Source(path=str(one), repeats=4, trigger="sks", masks="beside"),
        Source(path=str(two), repeats=2, masks=str(tmp_path / "masks")),
    ]
    found = open_sources(sources, Columns(), cache=tmp_path / "cache")
    assert [(each.key, each.repeats, each.trigger, each.mask is not None) for each in found] == [
        (f"{one}/a.png", 4, "sks", True),
        (f"{two}/3_x/a.png", 6, None, False),
        (f"{two}/3_x/b.png", 6, None, True),
    ]
    assert found[2].mask is not None and found[2].mask() == JPEG
    for masks in ("nothing", "one/a.png"):
        with pytest.raises(InputError, match="masks"):
            open_sources([Source(path=str(one), masks=str(tmp_path / masks))], Columns(), cache=tmp_path)
    with pytest.raises(InputError, match="no training data"):
        open_sources([], Columns(), cache=tmp_path)


def test_masks_beside_images_are_no_images(tmp_path: Path) -> None:
    files = {"a.png": PNG, "a.txt": "a", "b.jpg": JPEG, "b.txt": "b", "c.mask.png": PNG, "c.mask.txt": "c"}
    masks = {"a.mask.png": PNG, "b-masklabel.png": PNG}
    folder = write(tmp_path / "set", files | masks)
    beside = open_sources([Source(path=str(folder), masks="beside")], Columns(), cache=tmp_path)
    assert {each.key: each.mask is not None for each in beside} == {
        "a.png": True, "b.jpg": True, "c.mask.png": False,
    }, "c.mask.png is an image: there is no c.png"  # fmt: skip
    plain = open_sources([Source(path=str(folder))], Columns(), cache=tmp_path)
    assert [each.key for each in plain] == [each.key for each in beside]
    assert all(each.mask is None for each in plain)

    rows = [{"file_name": "a.png", "text": "a"}, {"file_name": "sub/../b.jpg", "text": "b"}]
    write(folder, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    first, second = open_sources([Source(path=str(folder), masks="beside")], Columns(), cache=tmp_path)
    assert first.mask is not None and first.mask() == PNG and second.mask is None

    tar(
        tmp_path / "s.tar", {"1.png": PNG, "1.txt": b"one", "1.mask.png": JPEG, "2.png": PNG, "2.txt": b"two"}
    )
    in_tar = open_sources([Source(path=f"{tmp_path}/s.tar", masks="beside")], Columns(), cache=tmp_path)
    assert in_tar[0].mask is not None and in_tar[0].mask() == JPEG and in_tar[1].mask is None


def test_control_images_are_beside_in_a_folder_in_rows_or_the_edges(tmp_path: Path) -> None:
    def opened_with(path: object, controls: str | None) -> dict[str, bytes | str | None]:
        source = Source(path=str(path), controls=controls)
        found = open_sources([source], Columns(), cache=tmp_path / "cache")
        contents: dict[str, bytes | str | None] = {}
        for each in found:
            try:
                contents[each.key] = each.control and each.control()
            except Unusable as trouble:
                contents[each.key] = str(trouble)
            assert each.edges == (controls == "edges")
        return contents

    files = {"a.png": PNG, "a.txt": "a", "a.control.png": JPEG, "b.jpg": JPEG, "b.txt": "b"}
    folder = write(tmp_path / "set", files | {"c.control.png": PNG, "c.control.txt": "c"})
    write(tmp_path / "poses", {"a.webp": b"pose of a", "c.control.jpg": b"pose of c"})
    assert opened_with(folder, None) == {"a.png": None, "b.jpg": None, "c.control.png": None}
    assert opened_with(folder, "beside") == {"a.png": JPEG, "b.jpg": "missing", "c.control.png": "missing"}
    assert opened_with(folder, "edges") == {"a.png": PNG, "b.jpg": JPEG, "c.control.png": PNG}
    assert opened_with(folder, str(tmp_path / "poses")) == {
        "a.png": b"pose of a", "b.jpg": "missing", "c.control.png": b"pose of c",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"controls is '.*: it must be beside, edges or a folder of"):
        opened_with(folder, str(tmp_path / "nothing"))

    rows = [
        {"file_name": "a.png", "text": "a"},
        {"file_name": "b.jpg", "text": "b", "conditioning_image": "a.control.png"},
        {"file_name": "c.control.png", "text": "c", "conditioning_image": "../poses/a.webp"},
    ]
    write(folder, {"metadata.jsonl": "\n".join(map(json.dumps, rows[:2]))})
    assert opened_with(folder, "beside") == {"a.png": JPEG, "b.jpg": JPEG}
    write(folder, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    with pytest.raises(InputError, match="not inside the data: refused"):
        opened_with(folder, "beside")

    tar(tmp_path / "s.tar", {"1.png": PNG, "1.txt": b"one", "1.control.png": JPEG, "2.png": PNG})
    assert opened_with(f"{tmp_path}/s.tar", "beside") == {"s.tar/1": JPEG, "s.tar/2": "missing"}

    table = {"image": [PNG], "text": ["a"], "conditioning_image": [JPEG]}
    pytest.importorskip("datasets").Dataset.from_dict(table).to_parquet(tmp_path / "t.parquet")
    assert opened_with(tmp_path / "t.parquet", "beside") == {"row 0": JPEG}
    assert opened_with(tmp_path / "t.parquet", None) == {"row 0": None}


def test_a_control_image_that_cannot_belong_to_its_image_is_reported(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {
        "a.png": PNG, "a.txt": "a", "a.control.png": as_bytes(smooth(32, 40)),
        "b.png": PNG, "b.txt": "b", "b.control.png": b"<html>",
        "c.png": PNG, "c.txt": "c",
    })  # fmt: skip
    sources = [Source(path=str(folder), controls="beside")]
    found, report = scan(open_sources(sources, Columns(), cache=tmp_path), min_side=16)
    assert not found and report.unusable == {
        "control of another shape than its picture": ["a.png"], "control: no PNG, JPEG or WebP": ["b.png"],
        "control: missing": ["c.png"],
    }  # fmt: skip


def test_a_mask_that_cannot_belong_to_its_image_is_reported(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {
        "a.png": PNG, "a.txt": "a", "a.mask.png": as_bytes(smooth(32, 40)),
        "b.png": PNG, "b.txt": "b", "b.mask.png": b"<html>",
        "c.png": PNG, "c.txt": "c", "c.mask.png": as_bytes(smooth(20, 16)),
    })  # fmt: skip
    found, report = scan(
        open_sources([Source(path=str(folder), masks="beside")], Columns(), cache=tmp_path), min_side=16
    )
    assert [each.example.key for each in found] == ["c.png"] and found[0].mask is not None
    assert report.unusable == {
        "mask of another shape than its picture": ["a.png"], "mask: no PNG, JPEG or WebP": ["b.png"],
    }  # fmt: skip


def test_lines_of_text_files_can_be_captions(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {
        "a.png": PNG, "a.txt": " one \n\ntwo, three\n", "b.png": PNG, "b.txt": "x\n" * 1001,
    })  # fmt: skip
    found, report = scan(opened(folder), min_side=16, caption_lines=True)
    assert [each.captions for each in found] == [("one", "two, three")]
    assert report.unusable == {"more than 1000 captions": ["b.png"]}
    assert scanned(opened(folder))[0]["a.png"] == ("one \n\ntwo, three",)
