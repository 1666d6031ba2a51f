"""Models from strangers: headers of safetensors files, and the configurations of a folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from fuzzing import as_json, damaged_json, fuzz, mutated_bytes
from ssd1b.weights.files import read_header
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.vocabulary import load_tokenizer, load_tokenizers

TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def opened(path: Path) -> object:
    info = open_checkpoint(path).info
    return info.defaults, load_tokenizers(info)


def test_safetensors_headers(tiny_single_file: Path, tmp_path: Path, fuzz_seconds: float) -> None:
    with tiny_single_file.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    # What the tensors hold does not matter: a hole in the file is as good as their data.
    data = tiny_single_file.stat().st_size - 8 - length
    few = {name: header[name] for name in list(header)[:40]}
    path = tmp_path / "model.safetensors"

    def read(start: bytes) -> None:
        path.write_bytes(start)
        os.truncate(path, len(start) + data)
        read_header(path)
        opened(path)

    texts = st.one_of(damaged_json(few), damaged_json(few), damaged_json(header))
    framed = texts.map(lambda text: len(text).to_bytes(8, "little") + text)
    whole = [len(text).to_bytes(8, "little") + text for text in (as_json(header), as_json(few))]
    fuzz(read, framed | mutated_bytes(whole), seconds=fuzz_seconds, examples=30)


def configurations(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*.json"))


def test_configurations(tiny_model: Path, tmp_path: Path, fuzz_seconds: float) -> None:
    folder = tmp_path / "model"
    shutil.copytree(
        tiny_model,
        folder,
        copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve()),
    )
    names = configurations(tiny_model)
    assert len(names) >= 8
    small = [name for name in names if (tiny_model / name).stat().st_size < 100_000]

    def read(change: tuple[Path, bytes]) -> None:
        name, content = change
        file = folder / name
        file.unlink()
        file.write_bytes(content)
        try:
            opened(folder)
        finally:
            file.unlink()
            file.symlink_to((tiny_model / name).resolve())

    def changed(name: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
        content = (tiny_model / name).read_bytes()
        damaged = damaged_json(json.loads(content))
        return st.tuples(st.just(name), damaged | damaged | mutated_bytes([content]))

    fuzz(read, st.sampled_from(small).flatmap(changed), seconds=fuzz_seconds, examples=30)


@pytest.mark.parametrize(
    "name", ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
)
def test_tokenizers(name: str, tiny_model: Path, tmp_path: Path, fuzz_seconds: float) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words = ["a", "b", "ab", "a</w>", "b</w>", "ab</w>", "!", ",</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    files = {
        "vocab.json": as_json(vocabulary),
        "merges.txt": b"#version: 0.2\na b\na b</w>\n",
        "tokenizer_config.json": as_json({"pad_token": {"content": "!", "special": True}, "bos_token": "x"}),
        "special_tokens_map.json": as_json({"pad_token": "!", "eos_token": "<|endoftext|>"}),
    }
    for each, content in files.items():
        (folder / each).write_bytes(content)

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        load_tokenizer(folder).ids("ab, a b! <|endoftext|>")

    inputs = mutated_bytes([files[name]])
    if name.endswith(".json"):
        inputs = inputs | damaged_json(json.loads(files[name]))
    fuzz(read, inputs, seconds=fuzz_seconds)
