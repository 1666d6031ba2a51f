"""Texts that people write or paste: prompts, axes, AUTOMATIC1111's parameters, TOML."""

import json
from pathlib import Path

import pytest

from fuzzing import damaged_json, fuzz, mutated_bytes, worded
from ssd1b.cli.sweep import _read_axes
from ssd1b.distill.stages import read_stages
from ssd1b.lab.axes import AXES, parse_axis
from ssd1b.presets import load_preset
from ssd1b.prompts import chunk, format_prompt, parse_prompt, split_prompts
from ssd1b.recipe import ModelIdentity, Recipe, read_json, read_parameters, write_json
from ssd1b.settings import resolve_settings

PROMPT = (
    "(", ")", "[", "]", ":", "1.3", "((", "))", "\\", "BREAK", " ", ",", "a cat", "<lora:x:1>", "|", "-",
    "1e9", "[a:b:0.5]", "[a|b]", " AND ", "{", "}", "__w__", "\n", "\0", "٣", "🐈", "\ufeff", "#",
)  # fmt: skip
AXIS = (
    *AXES, "=", ",", "-", "..", " ", "1", "25", "0.5", "(+1)", "[5]", "[", "]", "(", ")", "||", "none", '"',
    "\\", "1e9", "nan", "inf", "٣", "1_0", "9" * 30, "1024x768", "DPM++ 2M Karras", "basic", "\n", "\0",
)  # fmt: skip
PARAMETERS = (
    "a cat", "\n", "Negative prompt:", "Steps:", "Sampler:", "Schedule type:", "CFG scale:", "Seed:",
    "Size:", "Model:", "Version:", " ", ", ", "20", "-1", "7.5", "512x512", "1x1", "Euler a", "Automatic",
    "Karras", '"', '"a, b"', "{", "}", ":", "Lora hashes:", "nan", "9" * 40, "٣", "\\", "\0",
    "Hires upscale: 2",
)  # fmt: skip
RECIPE = ("{", "}", '"format"', ":", "1", ",", '"settings"', "[", "]", "nan")
WORDS_OF_TOML = (
    "[", "]", "[[stages]]", "[settings]", "=", "steps", "name", '"', "'", "\n", "1", "-5", "nan", "inf",
    "9" * 5000, "1e400", "true", "{", "}", ",", "#", "2026-01-01", "\0", "[train]",
)  # fmt: skip
TOML = (
    b'name = "crisp"\n[settings]\nguidance_scale = 7.0\nsteps = 20\nsampler = "Euler"\n',
    b'[axes]\nguidance = "1-9 [5]"\nsteps = [10, 20]\nnegative = ["a, b", "none"]\n',
    b"[train]\nlearning_rate = 1e-4\nwarmup_steps = 5\nbetas = [0.9, 0.99]\n"
    b'[[stages]]\nname = "one"\nstudent = "ssd-1b"\nsteps = 10\n[stages.train]\nbatch_size = 4\n',
)


def test_prompts(fuzz_seconds: float) -> None:
    def read(text: str) -> None:
        parts = parse_prompt(text)
        assert parse_prompt(format_prompt(parts)) == parts
        pairs = [[(ord(letter), each.weight) for each in part for letter in each.text] for part in parts]
        chunks = chunk(pairs, comma_id=ord(","))
        assert chunks and all(len(each) <= 75 for each in chunks)
        split_prompts(text, source="a file")

    fuzz(read, worded(PROMPT), seconds=fuzz_seconds)


def test_axes(fuzz_seconds: float) -> None:
    fuzz(parse_axis, worded(AXIS), seconds=fuzz_seconds)


def test_parameters(fuzz_seconds: float) -> None:
    def read(text: str) -> None:
        read_parameters(text).settings()

    fuzz(read, worded(PARAMETERS), seconds=fuzz_seconds)


def test_recipes_json(fuzz_seconds: float) -> None:
    settings = resolve_settings(
        "a cat", family="ssd-1b", model_defaults={}, preset=None, seed=5, negative_prompt="blurry"
    )
    model = ModelIdentity(name="ssd-1b", source="segmind/SSD-1B", revision="f" * 40, layout="ssd-1b")
    whole = write_json(Recipe.of(settings, model, dtype="float16", device="cuda", batch_size=1))
    assert read_json(whole).settings == settings
    fuzz(read_json, damaged_json(json.loads(whole)).map(bytes.decode) | worded(RECIPE), seconds=fuzz_seconds)


@pytest.mark.parametrize("read", [load_preset, read_stages, _read_axes], ids=["preset", "stages", "axes"])
def test_toml(read, tmp_path: Path, fuzz_seconds: float) -> None:
    path = tmp_path / "table.toml"

    def written(data: bytes) -> None:
        path.write_bytes(data)
        read(path if read is _read_axes else str(path))

    texts = worded(WORDS_OF_TOML).map(lambda text: text.encode("utf-8", "surrogatepass"))
    fuzz(written, mutated_bytes(TOML) | texts, seconds=fuzz_seconds)
