"""Adapters as written on the command line and in prompts."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssd1b.errors import ConflictError, InputError, NotFoundError
from ssd1b.inputs import InputFile
from ssd1b.jobs.job import make_job
from ssd1b.loras import PEFT_CONFIG, PEFT_FILE, Lora, lora_of, read_lora, read_tags, scaled, write_tags
from ssd1b.recipe import ModelIdentity, Recipe, read_json, write_json, write_parameters
from ssd1b.settings import GenerationSettings, check_overrides, resolve_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pixels.safetensors"
    save_file({"x": torch.ones(3)}, path)
    return path


@pytest.mark.parametrize(
    ("end", "unet", "text"),
    [("", 1, 1), (":0.8", 0.8, 0.8), (":0.8:0.5", 0.8, 0.5), (":-1:0", -1, 0), (": 0.5 : 1 ", 0.5, 1)],
)
def test_a_file_and_its_strengths(file: Path, end: str, unet: float, text: float) -> None:
    found = read_lora(f"{file}{end}")
    assert (found.unet, found.text, found.file.path) == (unet, text, str(file))
    assert read_lora(str(found)) == found
    assert found.name == "pixels"
    assert found.short_hash == hashlib.sha256(torch.ones(3).numpy().tobytes()).hexdigest()[:12]


def test_paths_may_have_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("C:").mkdir()
    for name in ("a:1", "C:/b.safetensors", "c:0.5:2", "d:e"):
        save_file({"x": torch.ones(1)}, name)
        assert read_lora(name).unet == 1 and read_lora(name).file.path == str(tmp_path / name)
        assert read_lora(str(read_lora(name))) == read_lora(name)
    assert read_lora("a:1:0.5").unet == 0.5
    assert read_lora("c:0.5:2:3").text == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}:much", "lora .*: 'much' is no number: write FILE:0.8:0.5"),
        ("{}:1:2:3", "lora .*: it has too many numbers: write FILE:0.8:0.5"),
        ("{}:101", "unet is 101.0: it must be a number from -100 to 100"),
        ("none.safetensors:1", "cannot read .*none.safetensors"),
        ("", "a path is empty"),
    ],
)
def test_mistakes(file: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_lora(text.format(file))


def test_tags_are_read_as_in_automatic1111(file: Path) -> None:
    folder = file.parent
    (folder / "more").mkdir()
    for name in ("more/light", "more/pixels2"):
        save_file({"x": torch.zeros(2)}, folder / f"{name}.safetensors")
    prompt, loras = read_tags(
        "a cat <lora:pixels:1.2:0.8>, <lyco:more/light>red<lora:pixels2:te=0:unet=2>", folder
    )
    assert prompt == "a cat , red"
    assert [(each.name, each.text, each.unet) for each in loras] == [
        ("pixels", 1.2, 0.8), ("light", 1, 1), ("pixels2", 0, 2)
    ]  # fmt: skip
    assert write_tags(loras) == "<lora:pixels:1.2:0.8><lora:light:1><lora:pixels2:0:2>"
    assert read_tags("<lora:pixels:0.1> x <lora:pixels:0.5>", folder)[1] == (
        lora_of(file, unet=0.5, text=0.5),
    )
    assert read_tags("no tags, <b>", folder / "none") == ("no tags, <b>", ())


def test_a_folder_of_peft_is_named_by_itself(file: Path) -> None:
    for folder in ("mine", "more/theirs"):
        (file.parent / folder).mkdir(parents=True)
        save_file({"x": torch.zeros(2)}, file.parent / folder / PEFT_FILE)
        (file.parent / folder / PEFT_CONFIG).write_text("{}")
    save_file({"x": torch.zeros(2)}, file.parent / "more" / PEFT_FILE)  # without a configuration
    for tag, name in (("mine", "mine"), ("theirs", "theirs"), ("more/theirs", "theirs")):
        (found,) = read_tags(f"<lora:{tag}:0.5>", file.parent)[1]
        assert (found.name, found.unet, found.config is None) == (name, 0.5, False)
    assert read_tags("<lora:more/adapter_model:1>", file.parent)[1][0].config is None
    inside = read_tags("<lora:adapter_model:1>", file.parent / "mine")[1]
    assert inside == (lora_of(file.parent / "mine"),)


def test_unknown_tags(file: Path) -> None:
    with pytest.raises(NotFoundError, match="unknown lora 'pixel': did you mean 'pixels'"):
        read_tags("<lora:pixel:1>", file.parent)
    with pytest.raises(InputError, match="'x' is no number"):
        read_tags("<lora:pixels:x>", file.parent)
    for strengths, message in (
        ("foo=0.3", "unknown strength in '<lora:pixels:foo=0.3>': 'foo': allowed: te, unet"),
        ("1:unte=0.3", "unknown strength in '<lora:pixels:1:unte=0.3>': 'unte': did you mean 'unet'"),
        ("1:1:dyn=8", "unknown strength in .*: 'dyn'"),
        ("0.3:0.4:0.5", "'<lora:pixels:0.3:0.4:0.5>' has too many numbers: write <lora:NAME:1:0.8>, with"),
        ("te=x", "'te=x' is no number: write <lora:NAME:1:0.8>"),
    ):
        with pytest.raises(InputError, match=message):
            read_tags(f"<lora:pixels:{strengths}>", file.parent)
    assert read_tags("<lora:pixels:te=0.5:0.3:0.2>", file.parent)[1][0].unet == 0.2  # names take no position
    with pytest.raises(NotFoundError, match="no such folder"):
        read_tags("<lora:pixels>", file.parent / "none")
    (file.parent / "b").mkdir()
    save_file({"x": torch.zeros(2)}, file.parent / "b" / "pixels.safetensors")
    with pytest.raises(InputError, match="several files"):
        read_tags("<lora:pixels>", file.parent)


def settings(**given: object) -> GenerationSettings:
    return resolve_settings("x", family="sdxl", model_defaults={"seed": 1}, preset=None, **given)


def test_settings_take_texts_tables_and_loras(file: Path) -> None:
    lora = read_lora(f"{file}:0.5")
    table = {"file": {"sha256": lora.file.sha256, "path": lora.file.path}, "unet": 0.5, "text": 0.5}
    for each in (lora, table, f"{file}:0.5"):
        assert settings(loras=[each]).loras == (lora,)
    assert settings().loras == () == check_overrides({"loras": []})["loras"]
    with pytest.raises(InputError, match=r"loras\[0\]"):
        check_overrides({"loras": [{"file": {"sha256": "x", "path": "y"}}]})
    with pytest.raises(InputError, match="at most 32 items"):
        check_overrides({"loras": [lora] * 33})


def test_keys_have_contents_and_strengths_and_no_paths(file: Path) -> None:
    def key(*loras: Lora) -> str:
        return make_job("m", settings(loras=loras), fingerprint="f", tokenizers=[], environment={}).key

    other = file.with_name("other.safetensors")
    other.write_bytes(file.read_bytes())
    assert key(lora_of(file)) == key(lora_of(other)) != key()
    assert len({key(), key(lora_of(file)), key(lora_of(file, text=0.5)), key(lora_of(file, unet=0.5))}) == 4
    # As before there were LoRAs.
    assert key() == "03e139bc3ba454d4713af84d9e862d1f83ce994698fc450d78e9774befea01e2"


def test_recipes(file: Path) -> None:
    lora = lora_of(file, unet=0.8, text=1.2)
    model = ModelIdentity(name="m", source="s", revision=None, layout="sdxl")
    recipe = Recipe(
        settings=settings(loras=[lora]), model=model, dtype="float32", device="cpu", batch_size=1, threads=1,
        torch_version="2", ssd1b_version="1",
    )  # fmt: skip
    assert read_json(write_json(recipe)) == recipe
    text = write_parameters(recipe)
    assert text.startswith("x <lora:pixels:1.2:0.8>\n")
    assert f'Lora hashes: "pixels: {lora.short_hash}"' in text


def test_strengths_are_scaled(file: Path) -> None:
    lora = lora_of(file, unet=0.5, text=1.0)
    assert scaled([lora], 2.0)[0] == lora_of(file, unet=1.0, text=2.0)
    assert scaled([lora], 0.0, "pixels")[0] == lora_of(file, unet=0.0, text=0.0)
    with pytest.raises(InputError, match="unknown lora 'pixel': did you mean 'pixels'"):
        scaled([lora], 2.0, "pixel")


def test_a_changed_file_is_refused(file: Path) -> None:
    lora = lora_of(file)
    file.write_bytes(b"x")
    with pytest.raises(ConflictError, match="has changed"):
        lora.file.verified(most=100)
    assert isinstance(lora.file, InputFile)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file; only intact safetensors"), (b"x", "another file, or a damaged one"),
        (b"PK\x03\x04" + bytes(99), "a zip archive, as PyTorch writes pickles"),
        (b"<html>", "a web page: the download went wrong"), (bytes(100), "another file"),
    ],
)  # fmt: skip
def test_other_files_are_found_at_once(content: bytes, message: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        lora_of(file)
