"""safetensors only, by content; nothing half-written; nothing lost."""

import json
import os
import pickle
import random
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rounds import rounds
from ssd1b.errors import InputError
from ssd1b.saving import replacing
from ssd1b.weights.files import (
    first_few,
    is_finite,
    open_file,
    parse_json,
    read_header,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    write_tensors(path, tensors, {"made by": "a test"})
    return path


def test_header(small):
    header = read_header(small)
    assert header.tensors == {"a": ("F32", (2, 3)), "b": ("F16", (4,))}
    assert header.metadata == {"format": "pt", "made by": "a test"}


def test_equal_tensors_and_metadata_are_the_same_bytes_in_any_order(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.arange(4, dtype=torch.int64), "c": torch.ones(1)}
    metadata = {str(number): f'{number} é \u2028 \x7f \x01 \n / \\ " \N{WHALE}' for number in range(20)}
    contents = set()
    for number in range(4):  # the library's order is another in each map
        path = tmp_path / f"{number}.safetensors"
        reverse = bool(number % 2)
        given = [dict(sorted(each.items(), reverse=reverse)) for each in (tensors, metadata)]
        write_tensors(path, *given)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert read_header(path).metadata == {"format": "pt", **metadata}
    (content,) = contents
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0 and list(json.loads(content[8 : 8 + length])["__metadata__"])[-2:] == [
        "9",
        "format",
    ]
    save_file(tensors, tmp_path / "plain.safetensors", metadata={"format": "pt", **metadata})
    plain = (tmp_path / "plain.safetensors").read_bytes()
    assert len(plain) == len(content) and plain[8 + length :] == content[8 + length :]
    assert all(each.equal(tensors[name]) for name, each in read_tensors(path).items())


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_is_refused_whatever_its_name_and_never_run(tmp_path, protocol):
    marker = tmp_path / "ran"
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weights": Canary(marker)}, protocol=protocol))
    with pytest.raises(
        InputError, match=r"model\.safetensors: .*only intact safetensors files are supported"
    ) as error:
        read_header(path)
    assert "\n" not in str(error.value)
    assert protocol < 2 or "a pickle, which can run code" in str(error.value)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the canary must be able to sing"


def test_pytorch_archives_are_refused_as_pickles(tmp_path):
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(InputError, match="a zip archive, as PyTorch writes pickles"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "a web page: the download went wrong"),
        (b'{"model": "unet", "layers": 12}', "a JSON text"),
        (struct.pack("<Q", 2**60) + b"{}", "a damaged safetensors file or another format"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "a damaged safetensors file or another format"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc", "a damaged safetensors file or another format"),
    ],
)
def test_impostors_are_named(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_header(path)


def test_what_is_not_there_or_no_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_header(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match="cannot read"):
        open_file(tmp_path)


def test_every_truncation_is_an_error(small, tmp_path):
    content = small.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    for length in range(len(content)):
        damaged.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"damaged\.safetensors: (a damaged|an empty file)"):
            read_header(damaged)


def test_a_flipped_bit_gives_a_header_or_a_sentence(small, tmp_path):
    content = small.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    for position in range(header_end):
        for bit in (0, 3, 7):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            damaged.write_bytes(flipped)
            try:
                header = read_header(damaged)
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert sum(len(shape) for _, shape in header.tensors.values()) <= 3


@given(st.binary(max_size=200))
@settings(max_examples=rounds(50, 200))
def test_any_bytes_give_a_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_header(path)


def test_json(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert read_json(path) == {"a": "é", "b": 1}


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"null", b"[" * 100_000])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"value\.json: (not valid JSON|expected a JSON object)"):
        read_json(path)


def test_absurdly_large_json_is_not_read(tmp_path):
    path = tmp_path / "value.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="too large: at most 8388608 bytes are allowed"):
        read_json(path)


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="there: not valid JSON"):
        parse_json("{", "there")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_anywhere_is_seen(dtype, value):
    for size, place in ((1, 0), (33, 32), (10_000, 5_000)):
        tensor = torch.zeros(size, dtype=dtype)
        assert is_finite(tensor)
        tensor[place] = value
        assert not is_finite(tensor)


def test_large_but_finite_numbers_are_finite():
    assert is_finite(torch.full((1000, 1000), torch.finfo(torch.float32).max))
    assert is_finite(torch.full((1000, 1000), 65504.0, dtype=torch.float16))
    assert is_finite(torch.empty(0))


def test_some_names():
    assert first_few("ab") == "a, b"
    assert first_few("abcde") == "a, b, c and 2 more"


def test_a_disk_that_takes_no_more_is_named_and_the_old_file_kept(tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        with pytest.raises(InputError, match=r"cannot write .*model\.safetensors: .*; nothing was changed"):
            with replacing(target) as temporary:
                write_tensors(temporary, {"a": torch.zeros(2**20)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert target.read_bytes() == b"old"


def test_tensors_that_do_not_lie_in_one_piece_are_written_right(tmp_path):
    tensor = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "t.safetensors", {"t": tensor.T, "part": tensor[:, 1:3]}, {})
    handle = open_file(tmp_path / "t.safetensors")
    assert torch.equal(handle.get_tensor("t"), tensor.T)
    assert torch.equal(handle.get_tensor("part"), tensor[:, 1:3])


def test_the_order_of_the_bytes_is_the_order_of_the_header(tmp_path):
    names = [f"t{i}" for i in range(50)]
    random.Random(0).shuffle(names)
    save_file({name: torch.zeros(3) for name in names}, tmp_path / "t.safetensors")
    assert (
        list(read_header(tmp_path / "t.safetensors").tensors)
        == open_file(tmp_path / "t.safetensors").offset_keys()
    )


def test_json_has_no_words_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"mean": float("nan"), "rows": [{"high": float("inf"), "low": 1.5}]})
    told = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert told == {"mean": None, "rows": [{"high": None, "low": 1.5}]}
