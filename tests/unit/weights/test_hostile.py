"""Files that somebody made to do harm: a sentence, in little time and memory, before anything is built."""

import json
import os
import shutil
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rounds import rounds
from ssd1b.errors import InputError
from ssd1b.settings import resolve_settings
from ssd1b.weights.files import read_header
from ssd1b.weights.hub import BUILT_IN
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.vocabulary import load_tokenizers
from timing import at_most

UNET = "model.diffusion_model.input_blocks.0.0.weight"


def entry(shape, offsets, number="F32"):
    return {"dtype": number, "shape": shape, "data_offsets": offsets}


def header(tensors: bytes | dict, length: int | None = None) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def many(count: int, key: bytes = b"data_offsets") -> bytes:
    rows = (b'"t%d":{"dtype":"F32","shape":[0],"%s":[0,0]}' % (i, key) for i in range(count))
    return header(b"{" + b",".join(rows) + b"}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (many(70_000), "it has 70000 tensors; at most 32768 are allowed"),
        (many(40_000, b"d\\u0061ta_offsets"), "it has 40000 tensors; at most 32768 are allowed"),
        (header(b" " * (16 * 2**20 + 1)), r"its header has 16777217 bytes; at most 16777216 are allowed"),
        (header({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}) + bytes(4), "damaged"),
        (header({"a": entry([1], [-4, 0])}) + bytes(4), "damaged"),
        (header({"a": entry([2**40], [0, 2**42])}) + bytes(4), "damaged"),
        (header({"a": entry([2**32, 2**32, 4], [0, 0])}), "damaged"),
        (header({"a": entry([2**70], [0, 4])}) + bytes(4), "damaged"),
        (header(b'{"a":' * 100_000), "damaged"),
        (struct.pack("<Q", 2**63) + b"{}", "damaged"),
    ],
)
def test_headers(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with at_most(5), pytest.raises(InputError, match=message):
        read_header(path)


def test_a_sparse_file_of_200_gigabytes_costs_nothing(tmp_path):
    size = 200 * 10**9
    start = header({UNET: entry([size // 4], [0, size])})
    path = tmp_path / "x.safetensors"
    path.write_bytes(start)
    try:
        os.truncate(path, len(start) + size)
    except OSError:
        pytest.skip("this file system has no sparse files of that size")
    with pytest.raises(InputError, match=r"not a UNet of SDXL's kind|cannot read"):
        open_checkpoint(path)


def test_a_name_that_is_too_long_for_the_system_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be a path here"):
        open_checkpoint(tmp_path / ("x" * 300))


def test_a_mapping_that_is_refused_is_a_sentence(tmp_path, tiny_file, monkeypatch):
    def refused(*args, **kwargs):
        raise RuntimeError("unable to mmap 200000000088 bytes from file </x>: Cannot allocate memory (12)")

    monkeypatch.setattr("ssd1b.weights.files.safe_open", refused)
    with pytest.raises(InputError, match=r"cannot read .*: unable to mmap"):
        open_checkpoint(tiny_file)


@pytest.mark.parametrize(
    "name",
    ["\x1b[2J\x07evil", "x" * 1_000_000, "model.diffusion_model.\x1b[2J", "model." * 100_000],
)
def test_names_from_a_file_are_shortened_and_printable(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({name: entry([1], [0, 4])}) + bytes(4))
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 900


FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "ssd1b.json",
)
CONTENTS = {name: json.loads((BUILT_IN["mini-ssd-1b"] / name).read_text()) for name in FILES}
FIELDS = [(name, field) for name, content in CONTENTS.items() for field in content]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from([2**33, 65_536, -1, 0, 1, 2, float("nan"), "\x1b[2J", "y" * 10_000, [1] * 10_000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return shutil.copytree(BUILT_IN["mini-ssd-1b"], tmp_path_factory.mktemp("models") / "mini")


@given(st.sampled_from(FIELDS), VALUES)
@settings(max_examples=rounds(60, 250), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_field_of_any_configuration_opens_or_gives_a_sentence(copy, place, value):
    name, field = place
    file = copy / name
    file.write_text(json.dumps({**CONTENTS[name], field: value}))
    try:
        checkpoint = open_checkpoint(copy)
        info = checkpoint.info
        load_tokenizers(info)
        defaults = {"seed": 0, **info.defaults}
        resolve_settings("any", family=checkpoint.family or "sdxl", model_defaults=defaults, preset=None)
    except InputError as error:
        assert len(str(error)) < 2000
    finally:
        file.write_text(json.dumps(CONTENTS[name]))
